//! Plots as SVG text, from figures already measured.
//!
//! Labels are SVG text with a general font name: whoever shows the picture brings the font. So
//! nothing is read from the system, and the same figures give the same bytes.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width of every plot, in pixels.
const WIDTH: u32 = 800;
/// Height of the line plots.
const LINES_HEIGHT: u32 = 460;
/// Height of a bar with its share of the space around it.
const BAR_STEP: i32 = 34;
/// Thickness of a bar.
const BAR: i32 = 20;
/// Space above the bars (title), below them (axis, legend), and left of them (names).
const TOP: i32 = 62;
const BOTTOM: i32 = 66;
const LEFT: i32 = 210;
const RIGHT: i32 = 70;
/// Most characters of a bar's name.
const NAME_MAX: usize = 28;

const INK: RGBColor = RGBColor(0x2b, 0x2b, 0x2b);
const FAINT: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const SOFT: RGBColor = RGBColor(0x66, 0x66, 0x66);
/// Colours that people with any kind of sight can tell apart (Okabe, Ito 2008).
const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0xb0, 0xa8, 0x00),
];

/// Why there is no plot.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// There is nothing to draw, or it holds a figure that is no number.
    #[error("plot {title:?}: {what}")]
    Figures {
        /// Which plot.
        title: String,
        /// What is wrong with the figures.
        what: &'static str,
    },
    /// The drawing failed.
    #[error("plot {title:?} cannot be drawn: {reason}")]
    Drawing {
        /// Which plot.
        title: String,
        /// What the drawing library said.
        reason: String,
    },
}

/// A bar: its name, and its parts from left to right as (index of the kind, length).
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it stands for.
    pub name: String,
    /// Each part's kind and length.
    pub parts: Vec<(usize, f64)>,
}

impl Bar {
    /// A bar of one part.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: usize, length: f64) -> Self {
        Self {
            name: name.into(),
            parts: vec![(kind, length)],
        }
    }

    fn length(&self) -> f64 {
        self.parts.iter().map(|(_, length)| length).sum()
    }
}

/// A line of a cumulative distribution: its name, and points (value, share up to it), rising.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it stands for.
    pub name: String,
    /// As [`check::latencies::Latencies::cdf`] gives them.
    pub points: Vec<(f64, f64)>,
}

impl Line {
    /// The distribution of a few exact values.
    #[must_use]
    pub fn of_values(name: impl Into<String>, values: &[u64]) -> Self {
        let mut values = values.to_vec();
        values.sort_unstable();
        let count = values.len() as f64;
        let points = (1..)
            .zip(&values)
            .map(|(n, value)| (*value as f64, f64::from(n) / count));
        Self {
            name: name.into(),
            points: points.collect(),
        }
    }
}

/// A value that a distribution is held against, drawn as a vertical line.
#[derive(Clone, Debug)]
pub struct Mark {
    /// What it stands for.
    pub name: String,
    /// Where it is.
    pub at: f64,
}

type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Throughput under FT as a share of that without, for our workloads and the paper's.
///
/// # Errors
/// [`PlotError`].
pub fn ft_ratio(ours: &[(&str, f64)], papers: &[(&str, f64)]) -> Result<String, PlotError> {
    let bars = |kind, from: &[(&str, f64)]| -> Vec<Bar> {
        from.iter()
            .map(|(name, ratio)| Bar::new(*name, kind, *ratio))
            .collect()
    };
    let all = [bars(0, ours), bars(1, papers)].concat();
    bar_chart(
        "Speed under FT, as a share of the speed without",
        "FT / non-FT",
        2,
        &["Tandem", "VMware FT (2010)"],
        &all,
    )
}

/// Log bandwidth of each workload, by kind of entry; `kinds` names the parts of `bars`.
///
/// # Errors
/// [`PlotError`].
pub fn log_bandwidth(kinds: &[&str], bars: &[Bar]) -> Result<String, PlotError> {
    bar_chart("Log bandwidth by kind of entry", "Mbit/s", 1, kinds, bars)
}

/// Speeds beside that of something else, whose speed is 1; `kinds` names the parts of `bars`.
///
/// # Errors
/// [`PlotError`].
pub fn speeds(title: &str, axis: &str, kinds: &[&str], bars: &[Bar]) -> Result<String, PlotError> {
    bar_chart(title, axis, 2, kinds, bars)
}

/// Latencies in microseconds as cumulative distributions, on a logarithmic axis.
///
/// # Errors
/// [`PlotError`].
pub fn latency_cdf(title: &str, lines: &[Line]) -> Result<String, PlotError> {
    cdf_chart(title, "latency in µs", lines, &[])
}

/// The stall of each client at each kill, in milliseconds, beside the goals.
///
/// # Errors
/// [`PlotError`].
pub fn stall_cdf(stalls_ms: &[u64], goals: &[Mark]) -> Result<String, PlotError> {
    let line = Line::of_values("client stall", stalls_ms);
    cdf_chart(
        "How long clients waited when the primary was killed",
        "stall in ms",
        &[line],
        goals,
    )
}

/// Horizontal bars of stacked parts, each with its length at its end.
fn bar_chart(
    title: &str,
    axis: &str,
    decimals: usize,
    kinds: &[&str],
    bars: &[Bar],
) -> Result<String, PlotError> {
    let wrong = |what| PlotError::Figures {
        title: title.into(),
        what,
    };
    if bars.is_empty() {
        return Err(wrong("there are no bars"));
    }
    let parts = || bars.iter().flat_map(|bar| &bar.parts);
    if !parts().all(|(kind, length)| *kind < kinds.len() && length.is_finite() && *length >= 0.0) {
        return Err(wrong("a part is no length, or of no kind"));
    }
    let height = TOP + BAR_STEP * bars.len() as i32 + BOTTOM;
    let longest = bars.iter().map(Bar::length).fold(0.0, f64::max);
    let step = tick_step(longest);
    let ticks = (longest / step).ceil().max(1.0);
    let scale = f64::from(WIDTH as i32 - LEFT - RIGHT) / (ticks * step);
    let to_x = |length: f64| LEFT + (scale * length).round() as i32;
    let floor = height - BOTTOM;
    drawn(title, height as u32, |area| {
        for tick in 0..=ticks as i32 {
            let value = f64::from(tick) * step;
            line(area, [(to_x(value), TOP - 6), (to_x(value), floor)], FAINT)?;
            let label = (to_x(value), floor + 6);
            text(
                area,
                &short(value),
                label,
                12,
                SOFT,
                (HPos::Center, VPos::Top),
            )?;
        }
        for (n, bar) in (0..).zip(bars) {
            let top = TOP + n * BAR_STEP + (BAR_STEP - BAR) / 2;
            draw_bar(area, bar, top, decimals, to_x)?;
        }
        text(
            area,
            axis,
            (WIDTH as i32 - RIGHT, floor + 24),
            12,
            SOFT,
            (HPos::Right, VPos::Top),
        )?;
        let used = (0..kinds.len()).filter(|k| parts().any(|(kind, v)| kind == k && *v > 0.0));
        let names: Vec<_> = used.map(|kind| (kind, kinds[kind])).collect();
        legend(area, &names, LEFT, height - 18)
    })
}

fn draw_bar(
    area: &Area<'_>,
    bar: &Bar,
    top: i32,
    decimals: usize,
    to_x: impl Fn(f64) -> i32,
) -> Drawn {
    let middle = top + BAR / 2;
    let name = (LEFT - 10, middle);
    text(
        area,
        &clip(&bar.name),
        name,
        14,
        INK,
        (HPos::Right, VPos::Center),
    )?;
    let mut from = 0.0;
    for (kind, length) in &bar.parts {
        let corners = [(to_x(from), top), (to_x(from + length), top + BAR)];
        area.draw(&Rectangle::new(corners, colour(*kind).filled()))?;
        from += length;
    }
    let label = format!("{:.decimals$}", bar.length());
    text(
        area,
        &label,
        (to_x(from) + 6, middle),
        13,
        INK,
        (HPos::Left, VPos::Center),
    )
}

/// Cumulative distributions on a logarithmic axis.
fn cdf_chart(title: &str, axis: &str, lines: &[Line], marks: &[Mark]) -> Result<String, PlotError> {
    let wrong = |what| PlotError::Figures {
        title: title.into(),
        what,
    };
    let points = || lines.iter().flat_map(|line| &line.points);
    if lines.iter().any(|line| line.points.is_empty()) || lines.is_empty() {
        return Err(wrong("there is a line without points"));
    }
    let sound = |(x, y): &(f64, f64)| x.is_finite() && *x >= 0.0 && (0.0..=1.0).contains(y);
    if !points().all(sound)
        || !marks
            .iter()
            .all(|mark| mark.at > 0.0 && mark.at.is_finite())
    {
        return Err(wrong("a point lies off the axes"));
    }
    let all = || {
        points()
            .map(|(x, _)| *x)
            .chain(marks.iter().map(|mark| mark.at))
    };
    let low = bound_below(all().filter(|x| *x > 0.0).reduce(f64::min).unwrap_or(1.0));
    let high = bound_above(all().fold(low, f64::max)).max(low * 2.0);
    let axes = Axes { low, high };
    drawn(title, LINES_HEIGHT, |area| {
        axes.draw_grid(area, axis)?;
        for mark in marks {
            axes.draw_mark(area, mark)?;
        }
        for (n, curve) in lines.iter().enumerate() {
            axes.draw_curve(area, curve, colour(n))?;
        }
        let names: Vec<_> = lines
            .iter()
            .map(|line| line.name.as_str())
            .enumerate()
            .collect();
        legend(area, &names, Axes::LEFT, LINES_HEIGHT as i32 - 18)
    })
}

/// A logarithmic axis from `low` to `high`, and shares from 0 to 1 above it.
struct Axes {
    low: f64,
    high: f64,
}

impl Axes {
    const LEFT: i32 = 64;
    const RIGHT: i32 = WIDTH as i32 - 30;
    const FLOOR: i32 = LINES_HEIGHT as i32 - 86;

    fn x(&self, value: f64) -> i32 {
        let share = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        Self::LEFT + (f64::from(Self::RIGHT - Self::LEFT) * share).round() as i32
    }

    fn y(share: f64) -> i32 {
        Self::FLOOR - (f64::from(Self::FLOOR - TOP) * share).round() as i32
    }

    fn draw_grid(&self, area: &Area<'_>, axis: &str) -> Drawn {
        for percent in [0, 25, 50, 75, 99, 100] {
            let y = Self::y(f64::from(percent) / 100.0);
            line(area, [(Self::LEFT, y), (Self::RIGHT, y)], FAINT)?;
            // No room for the label of 99 below that of 100.
            if percent != 99 {
                let label = format!("{percent} %");
                text(
                    area,
                    &label,
                    (Self::LEFT - 8, y),
                    12,
                    SOFT,
                    (HPos::Right, VPos::Center),
                )?;
            }
        }
        for value in log_ticks(self.low, self.high) {
            let x = self.x(value);
            line(area, [(x, TOP), (x, Self::FLOOR)], FAINT)?;
            let label = (x, Self::FLOOR + 6);
            text(
                area,
                &short(value),
                label,
                12,
                SOFT,
                (HPos::Center, VPos::Top),
            )?;
        }
        text(
            area,
            axis,
            (Self::RIGHT, Self::FLOOR + 24),
            12,
            SOFT,
            (HPos::Right, VPos::Top),
        )
    }

    fn draw_mark(&self, area: &Area<'_>, mark: &Mark) -> Drawn {
        let x = self.x(mark.at);
        line(area, [(x, TOP - 4), (x, Self::FLOOR)], PALETTE[5])?;
        let side = if x > Self::RIGHT - 60 {
            HPos::Right
        } else {
            HPos::Center
        };
        text(
            area,
            &mark.name,
            (x, TOP - 6),
            12,
            PALETTE[5],
            (side, VPos::Bottom),
        )
    }

    fn draw_curve(&self, area: &Area<'_>, curve: &Line, ink: RGBColor) -> Drawn {
        let mut y = Self::y(0.0);
        let mut steps = Vec::new();
        for (value, share) in &curve.points {
            let x = self.x(*value);
            steps.push((x, y));
            y = Self::y(*share);
            steps.push((x, y));
        }
        steps.push((Self::RIGHT, y));
        steps.dedup();
        area.draw(&PathElement::new(steps, ink.stroke_width(2)))?;
        Ok(())
    }
}

/// A white page with `title`, drawn on by `draw`.
fn drawn(
    title: &str,
    height: u32,
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, PlotError> {
    let mut svg = String::new();
    let page = || -> Drawn {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        text(&area, title, (24, 18), 18, INK, (HPos::Left, VPos::Top))?;
        draw(&area)?;
        area.present()?;
        Ok(())
    };
    page().map_err(|e| PlotError::Drawing {
        title: title.into(),
        reason: e.to_string(),
    })?;
    Ok(svg)
}

fn text(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: i32,
    ink: RGBColor,
    (h, v): (HPos, VPos),
) -> Drawn {
    let style = ("sans-serif", size)
        .into_font()
        .color(&ink)
        .pos(Pos::new(h, v));
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

fn line(area: &Area<'_>, ends: [(i32, i32); 2], ink: RGBColor) -> Drawn {
    area.draw(&PathElement::new(ends.to_vec(), ink.stroke_width(1)))?;
    Ok(())
}

/// Names with their colours, in one row from `x` on.
fn legend(area: &Area<'_>, names: &[(usize, &str)], mut x: i32, y: i32) -> Drawn {
    for (kind, name) in names {
        area.draw(&Rectangle::new(
            [(x, y - 6), (x + 12, y + 6)],
            colour(*kind).filled(),
        ))?;
        text(area, name, (x + 18, y), 13, INK, (HPos::Left, VPos::Center))?;
        // No font is at hand to measure with: 7 pixels a character is wide enough at this size.
        x += 18 + 7 * name.chars().count() as i32 + 22;
    }
    Ok(())
}

fn colour(kind: usize) -> RGBColor {
    PALETTE[kind % PALETTE.len()]
}

fn clip(name: &str) -> String {
    match name.char_indices().nth(NAME_MAX) {
        Some(_) => name.chars().take(NAME_MAX - 1).chain(['…']).collect(),
        None => name.into(),
    }
}

/// The step of 1, 2 or 5 times a power of ten that divides `longest` into 3 to 8 parts.
fn tick_step(longest: f64) -> f64 {
    let rough = (longest / 5.0).max(1e-3);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|n| n * power)
        .into_iter()
        .find(|s| *s >= rough * 0.99)
        .unwrap_or(rough)
}

/// 1, 2 and 5 times each power of ten between the bounds; powers of ten only, if those are many.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (low.log10().floor() as i32..=high.log10().ceil() as i32).collect::<Vec<_>>();
    let steps: &[f64] = if decades.len() > 5 {
        &[1.0]
    } else {
        &[1.0, 2.0, 5.0]
    };
    decades
        .into_iter()
        .flat_map(|decade| steps.iter().map(move |n| n * 10f64.powi(decade)))
        .filter(|tick| (low * 0.999..=high * 1.001).contains(tick))
        .collect()
}

/// The tick of 1, 2 or 5 at or below `value`.
fn bound_below(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0]
        .map(|n| n * power)
        .into_iter()
        .find(|tick| *tick <= value)
        .unwrap_or(power)
}

/// The tick of 1, 2 or 5 at or above `value`.
fn bound_above(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0]
        .map(|n| n * power)
        .into_iter()
        .find(|t| *t >= value)
        .unwrap_or(power * 10.0)
}

/// A tick's label.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e4 => format!("{}k", v / 1e3),
        v => format!("{}", (v * 1e4).round() / 1e4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_carry_their_names_and_lengths_and_only_the_kinds_there_are() {
        let bars = [
            Bar {
                name: "kv <50 & more>".into(),
                parts: vec![(0, 1.5), (2, 2.25)],
            },
            Bar::new("idle", 0, 0.5),
        ];
        let svg = log_bandwidth(&["timer", "clock", "frame"], &bars).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in [
            "kv &lt;50 &amp; more&gt;",
            "3.8",
            "0.5",
            "timer",
            "frame",
            "Mbit/s",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(!svg.contains("clock"));
        assert_eq!(
            svg,
            log_bandwidth(&["timer", "clock", "frame"], &bars).unwrap()
        );
    }

    #[test]
    fn a_ratio_stands_beside_the_papers() {
        let svg = ft_ratio(&[("counter", 0.97)], &[("SPECjbb2005", 0.98)]).unwrap();
        for text in ["0.97", "0.98", "SPECjbb2005", "Tandem", "VMware FT (2010)"] {
            assert!(svg.contains(text), "{text} is missing");
        }
    }

    #[test]
    fn a_line_of_values_rises_to_one() {
        let line = Line::of_values("x", &[30, 10, 20, 20]);
        assert_eq!(
            line.points,
            [(10.0, 0.25), (20.0, 0.5), (20.0, 0.75), (30.0, 1.0)]
        );
    }

    #[test]
    fn figures_that_cannot_be_drawn_are_refused() {
        let refused = |r| matches!(r, Err(PlotError::Figures { .. }));
        assert!(refused(stall_cdf(&[], &[])));
        assert!(refused(latency_cdf("x", &[])));
        let line = |point| {
            [Line {
                name: "x".into(),
                points: vec![point],
            }]
        };
        assert!(refused(latency_cdf("x", &line((f64::NAN, 0.5)))));
        assert!(refused(latency_cdf("x", &line((1.0, 1.5)))));
        assert!(refused(log_bandwidth(&["a"], &[])));
        assert!(refused(log_bandwidth(&["a"], &[Bar::new("x", 1, 1.0)])));
        assert!(refused(ft_ratio(&[("x", f64::INFINITY)], &[])));
    }

    #[test]
    fn zeros_and_single_values_can_be_drawn() {
        assert!(log_bandwidth(&["a"], &[Bar::new("x", 0, 0.0)]).is_ok());
        assert!(stall_cdf(&[0, 0], &[]).is_ok());
        assert!(
            stall_cdf(
                &[100],
                &[Mark {
                    name: "goal".into(),
                    at: 100.0
                }]
            )
            .is_ok()
        );
    }

    #[test]
    fn ticks_are_round_numbers_that_cover_the_range() {
        assert_eq!(log_ticks(10.0, 100.0), [10.0, 20.0, 50.0, 100.0]);
        assert_eq!((bound_below(37.0), bound_above(37.0)), (20.0, 50.0));
        assert_eq!((bound_below(100.0), bound_above(600.0)), (100.0, 1000.0));
        assert_eq!(tick_step(1.0), 0.2);
        assert_eq!(tick_step(18.0), 5.0);
    }
}
