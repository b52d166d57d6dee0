//! The views: who is primary and backup of each VM.
