//! Names that are like one nobody knows.

/// Most names given.
const NAMES_MAX: usize = 3;

/// The names among `known` that are nearest to `name`: as few letters as possible changed, left out or added, a
/// third of them at most. Names that begin with it, or have it as one of their words, come before longer ones.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let most = (name.len() / 3).max(1);
    let mut found: Vec<(usize, &str)> = known
        .filter_map(|other| {
            let word = other.split('-').any(|word| word == name);
            let steps = if word || other.starts_with(name) {
                1
            } else {
                distance(name, other, most)?
            };
            Some((steps, other))
        })
        .collect();
    found.sort_by_key(|(steps, other)| (*steps, other.len(), *other));
    found.dedup();
    let names = found.into_iter().take(NAMES_MAX);
    names.map(|(_, other)| other.to_owned()).collect()
}

/// Levenshtein's distance, if it is at most `most`.
fn distance(a: &str, b: &str, most: usize) -> Option<usize> {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().filter(|steps| *steps <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_come_first_and_far_ones_not_at_all() {
        let known = [
            "redis-server",
            "redis-tools",
            "nginx",
            "postgresql-15",
            "postgresql",
            "a",
        ];
        let near = |name| nearest(name, known.into_iter());
        assert_eq!(near("redis-sever"), ["redis-server"]);
        assert_eq!(near("postgres"), ["postgresql", "postgresql-15"]);
        assert_eq!(near("redis"), ["redis-tools", "redis-server"]);
        assert!(near("zzzzzzzz").is_empty());
    }
}
