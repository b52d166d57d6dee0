//! What the tests of several packages share: a dependency of tests alone.

pub mod distance;
pub mod numbers;
pub mod skipped;
pub mod strangers;
