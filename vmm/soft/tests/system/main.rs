//! System instructions, exceptions, page tables: small guests that say what they saw.

mod exceptions;
mod guest;
