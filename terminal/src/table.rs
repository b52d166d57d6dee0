//! Aligned tables in plain text, no wider than a terminal.
//!
//! ```text
//! workload        FT / non-FT   log Mbit/s
//! --------------  -----------  ----------
//! counter                0.98         0.4
//! ```

use crate::visible;
use std::fmt;

/// Columns of the narrowest terminal in use.
pub const WIDTH: usize = 80;
/// Between two columns.
const GAP: &str = "  ";
/// No column is cut to less than this.
const LEAST: usize = 4;

/// Where a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells under a head. A cell is one line: control characters in it are made [`visible`].
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<String>,
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    #[must_use]
    pub fn new(columns: &[(&str, Align)]) -> Self {
        Self {
            head: columns.iter().map(|(name, _)| cell(*name)).collect(),
            align: columns.iter().map(|(_, align)| *align).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If it has not one cell for each column.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        let cells: Vec<String> = cells.into_iter().map(cell).collect();
        assert_eq!(
            cells.len(),
            self.head.len(),
            "a cell for each column: {cells:?}"
        );
        self.rows.push(cells);
        self
    }

    /// The width of each column, all together within [`WIDTH`]: the widest of words give way.
    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = (0..self.head.len())
            .map(|n| {
                self.lines()
                    .map(|row| row[n].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > WIDTH {
            let words = (0..widths.len()).filter(|&n| self.align[n] == Align::Left);
            let Some(widest) = words
                .max_by_key(|&n| widths[n])
                .filter(|&n| widths[n] > LEAST)
            else {
                break; // nothing left to cut but numbers, which stay whole
            };
            widths[widest] -= 1;
        }
        widths
    }

    fn lines(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.head).chain(&self.rows)
    }
}

/// What is printed of a cell: it may be the guest's.
fn cell(text: impl Into<String>) -> String {
    visible(&text.into()).into_owned()
}

/// `text` in exactly `width` columns, cut with an ellipsis if it must be.
fn fit(text: &str, width: usize, align: Align) -> String {
    let length = text.chars().count();
    if length > width {
        let kept: String = text.chars().take(width.saturating_sub(1)).collect();
        return kept + "…";
    }
    let space = " ".repeat(width - length);
    match align {
        Align::Left => format!("{text}{space}"),
        Align::Right => format!("{space}{text}"),
    }
}

/// `text` in lines of at most `width` columns, broken at spaces where there are any; control
/// characters become spaces.
#[must_use]
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        let mut word: Vec<char> = word.chars().collect();
        while !word.is_empty() {
            let line = lines.last_mut().expect("there is always a line");
            let used = line.chars().count();
            let gap = usize::from(used > 0);
            if used + gap + word.len() <= width {
                line.push_str(&" ".repeat(gap));
                line.extend(word.drain(..));
            } else if used == 0 {
                line.extend(word.drain(..width));
            } else {
                lines.push(String::new());
            }
        }
    }
    lines
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for (n, row) in self.lines().enumerate() {
            let cells = row.iter().zip(&widths).zip(&self.align);
            let cells: Vec<_> = cells
                .map(|((text, width), align)| fit(text, *width, *align))
                .collect();
            writeln!(f, "{}", cells.join(GAP).trim_end())?;
            if n == 0 {
                let rules: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
                writeln!(f, "{}", rules.join(GAP))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_numbers_right() {
        let mut table = Table::new(&[("workload", Align::Left), ("ratio", Align::Right)]);
        table
            .row(["counter", "0.98"])
            .row(["kv, 50 connections", "0.7"]);
        let expected = "\
workload            ratio
------------------  -----
counter              0.98
kv, 50 connections    0.7
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_wide_table_is_cut_where_the_words_are_longest() {
        let mut table = Table::new(&[("a", Align::Left), ("n", Align::Right), ("b", Align::Left)]);
        table.row(["é".repeat(60), "123456".into(), "b".repeat(50)]);
        let text = table.to_string();
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        assert!(text.contains("123456"));
        assert_eq!(text.matches('…').count(), 2);
    }

    #[test]
    fn a_cell_is_one_line_and_says_nothing_to_the_terminal() {
        let mut table = Table::new(&[("task", Align::Left), ("n", Align::Right)]);
        table
            .row(["\x1b[2Jsh\r\u{9b}1A", "1"])
            .row(["a\n100.0 %", "2"]);
        let expected = r"
task                       n
-------------------------  -
\u001b[2Jsh\u000d\u009b1A  1
a\u000a100.0 %             2
";
        assert_eq!(table.to_string(), expected.trim_start());
    }

    #[test]
    #[should_panic(expected = "a cell for each column")]
    fn a_row_of_another_length_is_a_bug() {
        Table::new(&[("a", Align::Left)]).row(["x", "y"]);
    }
}
