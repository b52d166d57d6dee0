//! Pairs over real TCP on loopback.

pub use logchannel_testing::*;
