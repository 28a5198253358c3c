//! Rules of builds, on a database in memory.

mod graph;
mod life;
mod missing;
mod random;
mod wanted;
