//! The daemon end to end: real repositories, real evaluations, real builds.

mod basics;
mod bridge;
mod crash;
mod evaluators;
mod faults;
mod gitservers;
