//! The arbiter: one flag per (VM, view), set once; shared-disk and server.
