//! Numbers that the environment gives tests, as for longer runs.

/// The number that the variable `name` holds; none if there is no such variable.
///
/// # Panics
/// If it holds something else.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}
