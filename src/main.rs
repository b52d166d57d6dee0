//! Tandem: a fault-tolerant virtual machine.
fn main() {}
