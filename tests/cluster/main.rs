//! Hosts with supervisors, and machines that a viewservice places on them.

mod bad_input;
#[path = "../common/mod.rs"]
mod common;
mod lives;
mod secret;
mod site;
mod watch;
