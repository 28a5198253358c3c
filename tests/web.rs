//! The web interface, as clients of it see it.

mod basics;
