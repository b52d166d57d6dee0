//! What a guest said on its console before it gave up.

/// What a Linux kernel says when it panics (Linux, kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";
/// What a Linux kernel says that cannot unpack itself (Linux, arch/x86/boot/compressed/misc.c).
const HALTED: &str = "-- System halted";
/// What the scripts of our images say.
const SCRIPT: &str = "tandem: cannot go on: ";
/// Longest line kept, in bytes: the guest chooses how much it prints.
const LINE_MAX: usize = 200;

/// Listens to a console for the line that says why the guest gives up.
#[derive(Clone, Debug, Default)]
pub struct LastWords {
    /// The line under way.
    line: Vec<u8>,
    /// The first line that says why.
    why: Option<String>,
}

impl LastWords {
    /// Hears what was printed.
    pub fn hear(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if self.why.is_some() {
            return;
        }
        let line = String::from_utf8_lossy(&line);
        let found = [PANIC, HALTED, SCRIPT]
            .iter()
            .find_map(|why| line.find(why));
        self.why = found.map(|at| {
            // It goes into a line of ours.
            let printable = |c: &char| !c.is_control();
            line[at..].chars().filter(printable).collect()
        });
    }

    /// Why it gave up, if it said so.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }
}

/// Whether a guest that ended with `code` did so well: with 0, or halted without having said `why` it gave up.
#[must_use]
pub fn is_well(code: u32, why: Option<&str>) -> bool {
    code == 0 || (code == vmm::machine::HALT_STATUS && why.is_none())
}

/// What is said of a guest that ended with `code`, not 0.
pub fn of_status(code: u32, why: Option<&str>) -> String {
    let after = why.map_or_else(String::new, |why| format!(" after it said \"{why}\""));
    if code == vmm::machine::RESET_STATUS {
        return format!(
            "the guest asked for a reset (status {code}){after} (--on-reset restart starts it over)"
        );
    }
    if code == vmm::machine::HALT_STATUS {
        return format!("the guest halted its processor for good{after}");
    }
    format!("the guest ended with status {code}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_is_kept_and_fits_a_line() {
        let mut words = LastWords::default();
        words.hear(b"[    0.5] Freeing memory\r\n[    1.2] Kernel panic - not sync");
        assert_eq!(words.why(), None, "half a line");
        words.hear(b"ing: VFS: no\x1b[1m root\r\n[    1.3] Kernel panic - not syncing: again\n");
        let why = "Kernel panic - not syncing: VFS: no[1m root";
        assert_eq!(words.why(), Some(why));
        let said = of_status(3321, words.why());
        assert!(said.contains("reset (status 3321) after it said") && said.contains(why));
        assert_eq!(said.lines().count(), 1);
        assert_eq!(of_status(7, None), "the guest ended with status 7");
        let halt = vmm::machine::HALT_STATUS;
        assert_eq!(
            of_status(halt, None),
            "the guest halted its processor for good"
        );
        assert!(is_well(0, None) && is_well(halt, None) && !is_well(7, None));
        let mut words = LastWords::default();
        words.hear(b"\r\nZSTD-compressed data is corrupt\r\n\r\n -- System halted\n");
        assert!(!is_well(halt, words.why()));
    }

    #[test]
    fn a_guest_cannot_make_it_grow() {
        let mut words = LastWords::default();
        words.hear(&[b'x'; 1 << 20]);
        assert_eq!(words.line.len(), LINE_MAX);
        words.hear(b"\ntandem: cannot go on: no disk ");
        words.hear(&[b'y'; 1 << 20]);
        words.hear(b"\n");
        let why = words.why().unwrap();
        assert!(why.starts_with("tandem: cannot go on: no disk y") && why.len() == LINE_MAX);
    }
}
