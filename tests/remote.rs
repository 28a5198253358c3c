//! Builds on other machines.

mod worker;
