//! `tandem status --watch`: what there is and what changes, on a terminal as a page that is kept up to date, elsewhere
//! as a line for each change.

use super::status::{HOST_COLUMNS, VM_COLUMNS, host_line, host_row, troubles, vm_line, vm_row};
use super::up::is_protected;
use crate::failure::{During, Outcome};
use crate::signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, Wrap};
use ratatui::{DefaultTerminal, Frame};
use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};
use terminal::table::Align;
use terminal::visible;
use viewservice::{Client, HostStatus, Status, VmStatus};

/// Time between two questions to the viewservice.
const INTERVAL: Duration = Duration::from_millis(250);
/// Time between two looks at the keyboard.
const KEYS: Duration = Duration::from_millis(50);
/// Changes that are kept for the page.
const CHANGES: usize = 200;

/// What was seen so far.
#[derive(Default)]
struct Seen {
    status: Option<Status>,
    /// Why there is nothing newer.
    silent: Option<String>,
    /// Of each machine and host, its line.
    lines: BTreeMap<String, String>,
}

impl Seen {
    /// Takes what the service says, or why it does not; what changed, a line each.
    fn see(&mut self, said: Result<Status, String>) -> Vec<String> {
        let status = match said {
            Ok(status) => status,
            Err(why) => {
                let news = self.silent.as_ref() != Some(&why);
                self.silent = Some(why.clone());
                return news.then_some(why).into_iter().collect();
            }
        };
        let mut changes = Vec::new();
        if self.silent.take().is_some() {
            changes.push("the viewservice answers again".to_owned());
        }
        let vms = status
            .vms
            .iter()
            .map(|vm| (vm.name.to_string(), vm_line(vm)));
        let hosts = status.hosts.iter();
        let hosts = hosts.map(|host| (format!("host {}", host.name), host_line(host)));
        let now: BTreeMap<_, _> = vms.chain(hosts).collect();
        for (name, line) in &now {
            if self.lines.get(name) != Some(line) {
                changes.push(format!("{name}: {line}"));
            }
        }
        let gone = self.lines.keys().filter(|name| !now.contains_key(*name));
        changes.extend(gone.map(|name| format!("{name}: gone")));
        self.lines = now;
        self.status = Some(status);
        changes
    }
}

/// Hours, minutes and seconds of the day, UTC.
fn clock() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let second = now.map_or(0, |now| now.as_secs() % 86_400);
    format!(
        "{:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Watches until somebody wants it to end.
pub fn watch(client: &Client) -> Outcome {
    // What is wrong at once, a word on the command line say, is a failure; later it is a line.
    let first = client.status()?;
    let over = Arc::new(AtomicBool::new(false));
    let asked = over.clone();
    signals::watch(signals::block()?, move || {
        asked.store(true, Ordering::Relaxed)
    })?;
    if std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        return page(first, client, &over);
    }
    let mut seen = Seen::default();
    let mut said = Ok(first);
    while !over.load(Ordering::Relaxed) {
        for change in seen.see(said) {
            let line = format!("{} {}\n", clock(), visible(&change));
            let mut out = std::io::stdout().lock();
            let written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
            if written.is_err() {
                terminal::heed(written);
                return Ok(());
            }
        }
        std::thread::sleep(INTERVAL);
        if nobody_reads() {
            return Ok(());
        }
        said = ask(client);
    }
    Ok(())
}

/// Whether standard output is a pipe whose reader is gone.
fn nobody_reads() -> bool {
    let out = std::io::stdout();
    let mut fds = [PollFd::new(out.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    polled.is_ok() && fds[0].revents().is_some_and(|told| told.intersects(gone))
}

/// The page, until a key or a signal ends it.
fn page(first: Status, client: &Client, over: &AtomicBool) -> Outcome {
    let (tell, told) = channel();
    let client = client.clone();
    // A service that does not answer keeps nobody waiting, neither at the keyboard nor at the end.
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(INTERVAL);
            if tell.send(ask(&client)).is_err() {
                return;
            }
        }
    });
    let mut screen = ratatui::try_init().during("cannot use this terminal")?;
    let shown = show(&mut screen, first, &told, over);
    ratatui::restore();
    shown.during("cannot use this terminal")
}

fn show(
    screen: &mut DefaultTerminal,
    first: Status,
    told: &Receiver<Result<Status, String>>,
    over: &AtomicBool,
) -> std::io::Result<()> {
    let mut seen = Seen::default();
    let mut changes = VecDeque::new();
    let mut news = Some(Ok(first));
    let mut is_new = true;
    while !over.load(Ordering::Relaxed) {
        while let Some(said) = news.take() {
            let lines = seen.see(said);
            let lines = lines.iter().map(|line| visible(line));
            changes.extend(lines.map(|line| format!("{} {line}", clock())));
            changes.drain(..changes.len().saturating_sub(CHANGES));
            is_new = true;
            news = told.try_recv().ok();
        }
        if std::mem::take(&mut is_new) {
            screen.draw(|frame| draw(frame, &seen, &changes))?;
        }
        if event::poll(KEYS)? {
            // Another size is something new, too.
            is_new = true;
            if ends(&event::read()?) {
                break;
            }
        }
        news = told.try_recv().ok();
    }
    Ok(())
}

/// What the service says, or why it does not.
fn ask(client: &Client) -> Result<Status, String> {
    client.status().map_err(|e| e.to_string())
}

fn ends(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let interrupts =
        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (interrupts || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// Colours are for those who want them (no-color.org).
fn coloured(colour: Color) -> Style {
    match std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()) {
        true => Style::new().fg(colour),
        false => Style::new(),
    }
}

fn draw(frame: &mut Frame, seen: &Seen, changes: &VecDeque<String>) {
    let empty = Status {
        vms: Vec::new(),
        hosts: Vec::new(),
    };
    let status = seen.status.as_ref().unwrap_or(&empty);
    let troubles = troubles(status);
    let height = |rows: usize| u16::try_from(rows).unwrap_or(u16::MAX);
    // Changes are what is looked for: they keep a quarter of the page.
    let most = frame.area().height / 4;
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Max(height(status.vms.len() + 2)),
        Constraint::Max(height(status.hosts.len() + 2)),
        Constraint::Max(height(troubles.len() * 2)),
        Constraint::Min(most),
    ])
    .split(frame.area());
    let alone = status.vms.iter().filter(|vm| !is_protected(vm)).count();
    let mut head = format!(
        "{}  {} machines, {alone} not protected; {} hosts   q ends",
        clock(),
        status.vms.len(),
        status.hosts.len()
    );
    let mut style = Style::new().add_modifier(Modifier::REVERSED);
    if let Some(why) = &seen.silent {
        head = format!("{}  {}", clock(), visible(why));
        style = style.patch(coloured(Color::Red));
    }
    frame.render_widget(Paragraph::new(head).style(style), areas[0]);
    let vm_style = |vm: &VmStatus| match is_protected(vm) {
        true => coloured(Color::Green),
        false => coloured(Color::Yellow),
    };
    let vms = status.vms.iter().map(|vm| (vm_row(vm), vm_style(vm)));
    frame.render_widget(table(&VM_COLUMNS, vms), areas[1]);
    let host_style = |host: &HostStatus| match host.state {
        viewservice::HostState::Live => Style::new(),
        _ => coloured(Color::Red),
    };
    let hosts = status
        .hosts
        .iter()
        .map(|host| (host_row(host), host_style(host)));
    frame.render_widget(table(&HOST_COLUMNS, hosts), areas[2]);
    let troubles: Vec<_> = troubles
        .iter()
        .map(|line| Line::from(visible(line)))
        .collect();
    let troubles = Paragraph::new(troubles).wrap(Wrap { trim: true });
    frame.render_widget(troubles.style(coloured(Color::Red)), areas[3]);
    draw_changes(frame, areas[4], changes);
}

/// The newest last, and in sight.
fn draw_changes(frame: &mut Frame, area: Rect, changes: &VecDeque<String>) {
    let lines: Vec<_> = changes
        .iter()
        .map(|line| Line::from(line.as_str()))
        .collect();
    let text = Paragraph::new(lines);
    let below = u16::try_from(changes.len())
        .unwrap_or(u16::MAX)
        .saturating_sub(area.height);
    frame.render_widget(text.scroll((below, 0)), area);
}

/// A table with each column as wide as it has to be.
fn table<const N: usize>(
    columns: &[(&'static str, Align); N],
    rows: impl Iterator<Item = ([String; N], Style)>,
) -> Table<'static> {
    let rows: Vec<_> = rows.collect();
    let widths = (0..N).map(|n| {
        let cells = rows.iter().map(|(cells, _)| cells[n].chars().count());
        let most = cells.chain([columns[n].0.len()]).max().unwrap_or(0);
        Constraint::Max(u16::try_from(most).unwrap_or(u16::MAX))
    });
    let widths: Vec<_> = widths.collect();
    let cell = |n: usize, text: String| {
        let line = Line::from(text);
        Cell::from(match columns[n].1 {
            Align::Left => line,
            Align::Right => line.right_aligned(),
        })
    };
    let head = columns
        .iter()
        .enumerate()
        .map(|(n, (name, _))| cell(n, (*name).to_owned()));
    let head = Row::new(head.collect::<Vec<_>>()).style(Style::new().add_modifier(Modifier::BOLD));
    let rows = rows.into_iter().map(|(cells, style)| {
        let cells = cells.into_iter().enumerate().map(|(n, text)| cell(n, text));
        Row::new(cells.collect::<Vec<_>>()).style(style)
    });
    Table::new(rows, widths).header(head).column_spacing(2)
}
