//! Remote builds, over real sockets.

mod server;
