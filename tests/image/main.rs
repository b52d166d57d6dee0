//! Images are built from packages, the same bytes each time.

fn main() {}
