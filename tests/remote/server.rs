//! `remote-server`: what workers, bad peers and clients of its socket meet.

mod basics;
mod peers;
mod publish;
