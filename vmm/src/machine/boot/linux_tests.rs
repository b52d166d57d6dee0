//! Linux kernels.
use super::*;
