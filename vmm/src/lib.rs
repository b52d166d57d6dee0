//! The machine: vCPU engines, devices, run loop, snapshots, backends.
