//! Entries as bytes.
