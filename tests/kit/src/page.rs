//! A timeline as a page for a browser: one file, with nothing from elsewhere, for light and dark.

use crate::timeline::{LANES, TimelineEvent, ms};
use std::fmt::Write as _;
use terminal::table::wrap;

/// Sizes, in the picture's units: of the page, a row, a line of text; where lanes and texts are.
const WIDTH: usize = 940;
const ROW: usize = 30;
const LINE: usize = 17;
const LANE_X: usize = 110;
const LANE: usize = 90;
const TEXT_X: usize = LANE_X + 4 * LANE - 20;
/// Characters of a line of text.
const COLUMNS: usize = 62;
/// Where the scale of time begins and ends, and how far apart its lanes are.
const SCALE_X: usize = 90;
const SCALE_WIDTH: usize = WIDTH - SCALE_X - 30;
const SCALE_LANE: usize = 26;

/// Colours: of the page, its text, what is faint, and the lanes.
const STYLE: &str = "
:root { color-scheme: light dark; --page: #ffffff; --text: #1f2328; --faint: #6a737d; --line: #d8dee4;
  --client: #0a7ea4; --primary: #c8362b; --backup: #1a7f37; --arbiter: #9a6700; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --text: #e6edf3; --faint: #8b949e; --line: #30363d;
    --client: #58c4e6; --primary: #ff7b72; --backup: #56d364; --arbiter: #e3b341; } }
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 960px; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } p { color: var(--faint); margin: 0 0 1.2rem; }
svg { display: block; width: 100%; height: auto; margin-bottom: 1.5rem; }
text { fill: var(--text); font: 13px system-ui, sans-serif; } .faint { fill: var(--faint); }
.time { text-anchor: end; font-variant-numeric: tabular-nums; } .name { font-weight: 600; }
.middle { text-anchor: middle; } .line { stroke: var(--line); }
.client { fill: var(--client); stroke: var(--client); } .primary { fill: var(--primary); stroke: var(--primary); }
.backup { fill: var(--backup); stroke: var(--backup); } .arbiter { fill: var(--arbiter); stroke: var(--arbiter); }
text.client, text.primary, text.backup, text.arbiter { stroke: none; }
.life { stroke-width: 2; opacity: .45; } .cross { stroke-width: 3; fill: none; }
";

/// The page of `events`, in their order, whose zero is `zero`.
pub(crate) fn page(title: &str, zero: &str, events: &[TimelineEvent]) -> String {
    let title = escaped(title);
    let zero = escaped(zero);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n\
         <h1>{title}</h1>\n<p>Times in milliseconds, from {zero} on.</p>\n{}{}</body></html>\n",
        scale(events),
        rows(events)
    )
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Where on the scale `at_us` is, of those from `first` to `last`.
fn scale_x(at_us: i64, first: i64, last: i64) -> usize {
    let span = (last.abs_diff(first)).max(1);
    SCALE_X + (u128::from(at_us.abs_diff(first)) * SCALE_WIDTH as u128 / u128::from(span)) as usize
}

/// A step of 1, 2 or 5 times a power of ten, of which at most ten are in `span`.
fn step(span: u64) -> u64 {
    let mut power: u64 = 1;
    loop {
        for factor in [1, 2, 5] {
            let step = power.saturating_mul(factor);
            if span / step <= 10 {
                return step;
            }
        }
        power = power.saturating_mul(10);
    }
}

/// The events on a scale of time, a lane below the other: what lies long before the rest is left out.
fn scale(events: &[TimelineEvent]) -> String {
    let last = events
        .iter()
        .map(|event| event.at_us)
        .max()
        .unwrap_or(0)
        .max(1);
    let first = -last / 8;
    let height = SCALE_LANE * LANES.len() + 40;
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Events by time\">\n"
    );
    let bottom = height - 24;
    let step = i64::try_from(step(last.abs_diff(first))).unwrap_or(i64::MAX);
    let mut tick = first.div_euclid(step) * step;
    while tick <= last {
        if tick >= first {
            let x = scale_x(tick, first, last);
            let _ = writeln!(
                out,
                "<line class=\"line\" x1=\"{x}\" y1=\"4\" x2=\"{x}\" y2=\"{bottom}\"/>\
                 <text class=\"faint middle\" x=\"{x}\" y=\"{}\">{}</text>",
                bottom + 17,
                ms(tick)
            );
        }
        tick = tick.saturating_add(step);
    }
    for (n, (lane, name, _)) in LANES.iter().enumerate() {
        let y = SCALE_LANE * n + 18;
        let mut own = events.iter().filter(|event| event.lane == *lane);
        let death = own.clone().find(|event| event.death);
        let end = death.map_or(last, |event| event.at_us.max(first));
        let _ = writeln!(
            out,
            "<text class=\"{name} name\" x=\"4\" y=\"{}\">{name}</text>\
             <line class=\"{name} life\" x1=\"{SCALE_X}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\"/>",
            y + 5,
            scale_x(end, first, last)
        );
        for event in own.by_ref().filter(|event| event.at_us >= first) {
            let x = scale_x(event.at_us, first, last);
            let says = format!("{} ms: {}", ms(event.at_us), escaped(&event.text));
            let _ = writeln!(
                out,
                "<g><title>{says}</title>{}</g>",
                mark(name, x, y, event.death)
            );
        }
    }
    out + "</svg>\n"
}

fn mark(name: &str, x: usize, y: usize, death: bool) -> String {
    if death {
        return format!(
            "<path class=\"{name} cross\" d=\"M{} {}l12 12m0 -12l-12 12\"/>",
            x - 6,
            y - 6
        );
    }
    format!("<circle class=\"{name}\" cx=\"{x}\" cy=\"{y}\" r=\"5\"/>")
}

/// The events one below the other, with what is said of each.
fn rows(events: &[TimelineEvent]) -> String {
    let texts: Vec<Vec<String>> = events
        .iter()
        .map(|event| wrap(&event.text, COLUMNS))
        .collect();
    let heights = texts
        .iter()
        .map(|lines| ROW + LINE * lines.len().saturating_sub(1));
    let height = 44 + heights.clone().sum::<usize>();
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Events in order\">\n"
    );
    let tops: Vec<usize> = heights
        .scan(44, |top, height| {
            let own = *top;
            *top += height;
            Some(own)
        })
        .collect();
    for (n, (lane, name, _)) in LANES.iter().enumerate() {
        let x = LANE_X + LANE * n;
        let death = events
            .iter()
            .position(|event| event.lane == *lane && event.death);
        let end = death.map_or(height, |row| tops[row] + ROW / 2);
        let _ = writeln!(
            out,
            "<text class=\"{name} name middle\" x=\"{x}\" y=\"18\">{name}</text>\
             <line class=\"{name} life\" x1=\"{x}\" y1=\"28\" x2=\"{x}\" y2=\"{end}\"/>"
        );
    }
    for ((event, lines), top) in events.iter().zip(&texts).zip(&tops) {
        let y = top + ROW / 2;
        let Some(n) = LANES.iter().position(|(lane, ..)| *lane == event.lane) else {
            continue;
        };
        let _ = writeln!(
            out,
            "<text class=\"time\" x=\"66\" y=\"{}\">{}</text>{}",
            y + 5,
            ms(event.at_us),
            mark(LANES[n].1, LANE_X + LANE * n, y, event.death)
        );
        for (n, line) in lines.iter().enumerate() {
            let y = y + 5 + LINE * n;
            let _ = writeln!(
                out,
                "<text x=\"{TEXT_X}\" y=\"{y}\">{}</text>",
                escaped(line)
            );
        }
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{Lane, Timeline};

    fn timeline() -> Timeline {
        let mut timeline = Timeline::default();
        timeline
            .event(-210_400, Lane::Client, "8 clients <connected> & more")
            .death(0, Lane::Primary, "killed with SIGKILL")
            .event(5_340, Lane::Backup, "silence noticed")
            .event(5_900, Lane::Arbiter, "flag of view 1 set by the backup");
        timeline
    }

    #[test]
    fn a_page_has_all_events_and_nothing_from_elsewhere() {
        let page = timeline().page("A failover", "the kill");
        assert!(page.contains("8 clients &lt;connected&gt; &amp; more"));
        assert_eq!(
            page.matches("<circle").count(),
            3 + 2,
            "one lies before the scale"
        );
        assert_eq!(page.matches("cross\" d=").count(), 2);
        for elsewhere in ["http", "<script", "url(", "src="] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn the_scales_steps_are_round() {
        assert_eq!(
            [1, 10, 11, 9_000, 12_345].map(step),
            [1, 1, 2, 1_000, 2_000]
        );
        assert!(step(u64::MAX) > 0);
    }
}
