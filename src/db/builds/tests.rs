//! Rules of builds, on a database in memory.

mod graph;
mod life;
mod random;
mod wanted;
