//! ACPI tables.
use super::*;
