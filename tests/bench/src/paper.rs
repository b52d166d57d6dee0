//! The figures of the paper whose model this is: Scales, Nelson, Venkitachalam, "The Design of a Practical
//! System for Fault-Tolerant Virtual Machines", ACM SIGOPS OSR 44(4), 2010. Taken on 8-core 2.8 GHz Xeons
//! with 8 GB, other machines and other guests than ours: to stand beside, not to beat.

/// One row: a figure, or a range of it, in the words of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// The workload.
    pub name: &'static str,
    /// Without FT, where the paper says.
    pub without_ft: &'static str,
    /// Under FT, where the paper says.
    pub under_ft: &'static str,
    /// FT over non-FT.
    pub ft_ratio: &'static str,
    /// Log bandwidth in Mbit/s.
    pub log_mbit_s: &'static str,
}

const fn row(
    name: &'static str,
    [without_ft, under_ft, ft_ratio, log_mbit_s]: [&'static str; 4],
) -> Row {
    Row {
        name,
        without_ft,
        under_ft,
        ft_ratio,
        log_mbit_s,
    }
}

/// The paper's tables 1 and 2.
pub const ROWS: [Row; 7] = [
    row("SPECjbb2005", ["", "", "0.98", "1.5"]),
    row("kernel compile", ["", "", "0.95", "3.0"]),
    row("Oracle Swingbench", ["", "", "0.99", "12"]),
    row("MS-SQL DVD Store", ["", "", "0.94", "18"]),
    row("idle guest", ["", "", "", "0.5-1.5"]),
    row("netperf rx, Mbit/s", ["940", "604-860", "0.64-0.91", "730"]),
    row("netperf tx, Mbit/s", ["940", "855-935", "0.91-0.99", ""]),
];

/// The paper's ratios that are one number.
#[must_use]
pub fn ratios() -> Vec<(&'static str, f64)> {
    ROWS.iter()
        .filter_map(|row| Some((row.name, row.ft_ratio.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ratios_are_those_of_the_rates() {
        for row in ROWS.iter().filter(|row| !row.without_ft.is_empty()) {
            let without: f64 = row.without_ft.parse().unwrap();
            let (low, high) = row.under_ft.split_once('-').unwrap();
            let share = |rate: &str| rate.parse::<f64>().unwrap() / without;
            assert_eq!(
                row.ft_ratio,
                format!("{:.2}-{:.2}", share(low), share(high))
            );
        }
        assert_eq!(ratios().len(), 4);
    }
}
