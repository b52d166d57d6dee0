//! The logging channel: entries out, acks back, output gate, heartbeats, roles.
