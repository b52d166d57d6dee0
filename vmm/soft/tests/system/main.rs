//! System instructions, exceptions, page tables: small guests that say what they saw.

mod compat;
mod exceptions;
mod memory;
mod registers;
mod stepping;
mod transfers;
