//! Which task ran when, and what each did in the kernel, as tracks of a trace for Perfetto.

use super::PAGE_FAULT;
use super::kernel::Task;
use crate::failure::Outcome;
use crate::look::perfetto::{Detail, Trace, Track};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// What a task is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// A system call.
    Call,
    /// An interrupt or exception, which came where the stack pointer was this.
    Event(u64),
}

/// A task that was seen.
struct Seen {
    track: Track,
    task: Task,
    open: Vec<Open>,
}

/// Exceptions by number (SDM volume 3, table 6-1), as far as Linux has more to do with them than to end a program.
const NAMES: [(u8, &str); 6] = [
    (0, "divide error"),
    (1, "debug exception"),
    (3, "breakpoint"),
    (6, "invalid opcode"),
    (7, "device not available"),
    (13, "general protection"),
];
/// Interrupts of devices come from this number on (SDM volume 3, 6.2).
const DEVICES: u8 = 32;

/// What is counted for the words at the end.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    calls: u64,
    switches: u64,
    faults: u64,
}

/// The tracks.
pub struct Tracks {
    trace: Trace<BufWriter<File>>,
    cpu: Track,
    tasks_group: Track,
    /// By where the task is: a number is another task's again later.
    tasks: BTreeMap<u64, Seen>,
    running: bool,
    counts: Counts,
}

impl Tracks {
    /// None yet, in a new file at `path`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path) -> Outcome<Self> {
        let mut trace = Trace::create(path)?;
        let machine = trace.group("machine");
        Ok(Self {
            cpu: trace.track("which task runs", machine),
            tasks_group: trace.group("tasks"),
            trace,
            tasks: BTreeMap::new(),
            running: false,
            counts: Counts::default(),
        })
    }

    /// `task`, which is at `at`, runs from `now` on.
    pub fn switch(&mut self, now: u64, at: u64, task: &Task) {
        if self.running {
            self.trace.end(now, self.cpu, &[]);
            self.counts.switches += 1;
        }
        self.running = true;
        let details = [Detail::Number("pid", task.pid.into())];
        self.trace
            .begin(now, self.cpu, &task.name, "scheduler", &details);
        self.meet(now, at, task);
    }

    /// `task` is at `at`. It has another track than the one that was there, and than it had by another name: a program
    /// that starts another has that one's name from then on.
    pub fn meet(&mut self, now: u64, at: u64, task: &Task) {
        if let Some(seen) = self.tasks.get(&at) {
            // What is under way ends where it began.
            let under_way = seen.task.pid == task.pid && !seen.open.is_empty();
            if under_way || seen.task == *task {
                return;
            }
        }
        let name = format!("{} {}", task.name, task.pid);
        let seen = Seen {
            track: self.trace.track(&name, self.tasks_group),
            task: task.clone(),
            open: Vec::new(),
        };
        if let Some(gone) = self.tasks.insert(at, seen) {
            close(&mut self.trace, now, &gone);
        }
    }

    /// The task at `at` calls the kernel.
    pub fn call(&mut self, now: u64, at: u64, name: &str, arguments: [u64; 3]) {
        self.counts.calls += 1;
        let Some(seen) = self.tasks.get_mut(&at) else {
            return;
        };
        let [first, second, third] = arguments;
        let details = [
            Detail::Number("rdi", first),
            Detail::Number("rsi", second),
            Detail::Number("rdx", third),
        ];
        seen.open.push(Open::Call);
        self.trace
            .begin(now, seen.track, name, "system call", &details);
    }

    /// An interrupt or exception comes while the task at `at` runs: with the stack pointer and the instruction it came
    /// at, and a page fault's address.
    pub fn event(
        &mut self,
        now: u64,
        at: u64,
        vector: u8,
        (rip, rsp): (u64, u64),
        address: Option<u64>,
    ) {
        self.counts.faults += u64::from(vector == PAGE_FAULT);
        let Some(seen) = self.tasks.get_mut(&at) else {
            return;
        };
        seen.open.push(Open::Event(rsp));
        let known = NAMES.iter().find(|(number, _)| *number == vector);
        let (name, kind) = match (vector, known) {
            (PAGE_FAULT, _) => ("page fault".to_owned(), "page fault"),
            (_, Some((_, name))) => ((*name).to_owned(), "exception"),
            (DEVICES.., None) => (format!("interrupt {vector:#x}"), "interrupt"),
            _ => (format!("exception {vector}"), "exception"),
        };
        let rip = format!("{rip:#x}");
        let address = address.map(|address| format!("{address:#x}"));
        let mut details = vec![Detail::Text("rip", &rip)];
        details.extend(
            address
                .iter()
                .map(|address| Detail::Text("address", address)),
        );
        self.trace.begin(now, seen.track, &name, kind, &details);
    }

    /// The kernel returns, to a program with `result` or to itself, with the stack pointer there.
    pub fn returned(&mut self, now: u64, at: u64, result: Option<u64>, rsp: u64) {
        let Some(seen) = self.tasks.get_mut(&at) else {
            return;
        };
        match result {
            // Whatever was under way is over.
            Some(result) => {
                let called = seen.open.first() == Some(&Open::Call);
                while let Some(open) = seen.open.pop() {
                    let details = match open {
                        Open::Call if called => vec![Detail::Number("rax", result)],
                        _ => Vec::new(),
                    };
                    self.trace.end(now, seen.track, &details);
                }
            }
            None if seen.open.last() == Some(&Open::Event(rsp)) => {
                seen.open.pop();
                self.trace.end(now, seen.track, &[]);
            }
            // The kernel uses `iret` for other ends, too.
            None => {}
        }
    }

    /// All ends here; in words, what there is.
    ///
    /// # Errors
    /// If it could not be written, at any time.
    pub fn finish(&mut self, now: u64) -> Outcome<String> {
        for seen in self.tasks.values() {
            close(&mut self.trace, now, seen);
        }
        if self.running {
            self.trace.end(now, self.cpu, &[]);
        }
        self.trace.finish()?;
        let Counts {
            calls,
            switches,
            faults,
        } = self.counts;
        Ok(format!(
            "{calls} system calls, {switches} switches of tasks and {faults} page faults in {}",
            self.trace.path()
        ))
    }
}

fn close(trace: &mut Trace<BufWriter<File>>, now: u64, seen: &Seen) {
    for _ in &seen.open {
        trace.end(now, seen.track, &[]);
    }
}
