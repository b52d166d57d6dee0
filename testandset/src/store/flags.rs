//! What a store knows, in memory; no file.
//!
//! ```text
//!   set:    flag 0   flag 1   flag 2 = x.ended        flag 3
//!           ╰───────────── folded ────────╯
//!   ended:  web: flags up to 2 are x.ended's           flag 3
//! ```
//!
//! *What may be forgotten.* A flag that is set must stay set. A replica that slept through everything may
//! still ask for it, and would go live if the flag were free. So no flag is ever dropped.
//!
//! But once a machine is marked as ended in view n, all its flags up to n say the same to whoever may still
//! ask: the machine is over. So they are folded into one line. Folding clears no flag. It may set flags that
//! nobody had, where a viewservice left views out. So all it can do is make a contender lose that could have
//! won, and only of a machine that is over.
//!
//! What is forgotten is who won each flag. A winner that asks again is told that the machine has ended. That
//! is so, by the winner's own word or by its successor's.
//!
//! The age of an end mark plays no part in this. It only leaves time to look at who won what, so a clock that
//! is wrong does no harm.

use crate::record::{Ended, Entry, Identity, Record, to_line};
use crate::{Contender, Flag, StoreId, ViewNumber, VmId};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

/// What a store's lines come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Flags {
    pub(super) id: Option<StoreId>,
    set: BTreeMap<Flag, Record>,
    ended: BTreeMap<VmId, Ended>,
    /// How many of both each client has set.
    by: HashMap<IpAddr, usize>,
    /// Lines taken, of the ones that matter and of the others.
    lines: usize,
}

impl Flags {
    /// Takes what a line says.
    ///
    /// # Errors
    /// How it contradicts the lines before.
    pub(super) fn take(&mut self, entry: Entry) -> Result<(), String> {
        self.lines += 1;
        match entry {
            Entry::Flag(record) => self.take_flag(record),
            Entry::Ended(ended) => self.take_ended(ended),
            Entry::Identity(Identity { store }) => {
                match self.id.replace(store).is_none_or(|before| before == store) {
                    true => Ok(()),
                    false => Err("it names another store than the one it is in".into()),
                }
            }
        }
    }

    fn take_flag(&mut self, record: Record) -> Result<(), String> {
        let flag = record.flag();
        match self.holder(&flag) {
            Some(holder) if *holder == record.holder => return Ok(()),
            Some(_) => return Err(format!("{flag} is set a second time")),
            None => {}
        }
        self.count(record.by, 1);
        self.set.insert(flag, record);
        Ok(())
    }

    fn take_ended(&mut self, ended: Ended) -> Result<(), String> {
        let vm = &ended.vm;
        if !ended.holder.is_end_mark() {
            return Err(format!("{} is no mark of an end", ended.holder));
        }
        if self
            .ended
            .get(vm)
            .is_some_and(|before| before.through > ended.through)
        {
            return Err(format!("VM {vm} has ended in a later view before"));
        }
        for flag in self.up_to(vm, ended.through) {
            let gone = self.set.remove(&flag).expect("it was found");
            self.count(gone.by, -1);
        }
        self.count(ended.by, 1);
        if let Some(before) = self.ended.insert(vm.clone(), ended) {
            self.count(before.by, -1);
        }
        Ok(())
    }

    fn count(&mut self, by: Option<IpAddr>, change: isize) {
        if let Some(by) = by {
            let count = self.by.entry(by).or_default();
            *count = count.checked_add_signed(change).expect("counted before");
            if *count == 0 {
                self.by.remove(&by);
            }
        }
    }

    /// The flags of `vm` that are set, up to that of view `through`.
    fn up_to(&self, vm: &VmId, through: ViewNumber) -> Vec<Flag> {
        let flag = |view| Flag {
            vm: vm.clone(),
            view,
        };
        let range = flag(ViewNumber(0))..=flag(through);
        self.set
            .range(range)
            .map(|(flag, _)| flag.clone())
            .collect()
    }

    /// Whose `flag` is.
    pub(super) fn holder(&self, flag: &Flag) -> Option<&Contender> {
        match self.ended.get(&flag.vm) {
            Some(ended) if flag.view <= ended.through => Some(&ended.holder),
            _ => self.set.get(flag).map(|record| &record.holder),
        }
    }

    /// The flag of `vm` with the highest view, and whose it is.
    pub(super) fn newest(&self, vm: &VmId) -> Option<(ViewNumber, Contender)> {
        let flag = |view| Flag {
            vm: vm.clone(),
            view: ViewNumber(view),
        };
        let set = self.set.range(flag(0)..=flag(u64::MAX)).next_back();
        let set = set.map(|(flag, record)| (flag.view, &record.holder));
        let ended = self
            .ended
            .get(vm)
            .map(|ended| (ended.through, &ended.holder));
        // What is folded lies below what is set.
        set.or(ended).map(|(view, holder)| (view, holder.clone()))
    }

    /// How many lines they need, the identity's aside.
    pub(super) fn len(&self) -> usize {
        self.set.len() + self.ended.len()
    }

    /// How many of them `client` has set.
    pub(super) fn set_by(&self, client: IpAddr) -> usize {
        self.by.get(&client).copied().unwrap_or_default()
    }

    /// What could be folded at the time `now_s`, of machines whose end was marked `keep` ago or longer;
    /// `limit` machines at most.
    pub(super) fn foldable(&self, now_s: u64, keep: Duration, limit: usize) -> Vec<Ended> {
        let is_old = |record: &Record| {
            let marked_s = record.at_s.unwrap_or(0);
            marked_s.saturating_add(keep.as_secs()) <= now_s
        };
        // Of each machine the last mark, and how many lines become one.
        let mut found: Vec<Ended> = Vec::new();
        let mut records = self.set.values().peekable();
        while let Some(first) = records.peek()
            && found.len() < limit
        {
            let vm = first.vm.clone();
            let mut lines = usize::from(self.ended.contains_key(&vm));
            let mut last = None;
            while let Some(record) = records.next_if(|record| record.vm == vm) {
                lines += 1;
                if record.holder.is_end_mark() && is_old(record) {
                    last = Some((record, lines));
                }
            }
            if let Some((mark, lines)) = last
                && lines > 1
            {
                found.push(Ended {
                    vm,
                    through: mark.view,
                    holder: mark.holder.clone(),
                    by: mark.by,
                });
            }
        }
        found
    }

    /// Whether more than half of the lines taken no longer matter.
    pub(super) fn is_wasteful(&self) -> bool {
        self.lines > 2 * self.len() + 64
    }

    /// All of it, as lines that say the same.
    pub(super) fn to_lines(&self) -> String {
        let mut lines = String::new();
        if let Some(store) = self.id {
            lines += &to_line(&Identity { store });
        }
        self.ended
            .values()
            .for_each(|ended| lines += &to_line(ended));
        self.set
            .values()
            .for_each(|record| lines += &to_line(record));
        lines
    }

    /// The file was written anew, by [`Self::to_lines`].
    pub(super) fn were_written(&mut self) {
        self.lines = self.len() + 1;
    }
}
