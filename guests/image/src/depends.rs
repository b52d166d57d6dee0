//! Which of the packages an installation would have are put into a guest.
//!
//! An installation needs much that a guest does not: what configures packages, starts services, adds
//! users. So dependencies are followed from the named packages, except into [`HOUSEKEEPING`].

use crate::apt::Candidate;
use std::collections::{BTreeMap, BTreeSet};

/// Packages others depend on for installing, configuring and starting them, which nobody does in a guest;
/// busybox does what is left. A name with `*` stands for all that begin so.
const HOUSEKEEPING: &[&str] = &[
    "adduser",
    "coreutils",
    "debconf*",
    "debianutils",
    "dpkg",
    "findutils",
    "gcc-*-base",
    "init-system-helpers",
    "initscripts",
    "install-info",
    "iproute2",
    "libpam-runtime",
    "logrotate",
    "lsb-base",
    "mawk",
    "passwd",
    "perl*",
    "procps",
    "sed",
    "systemd*",
    "sysvinit-utils",
    "tar",
    "ucf",
    "udev",
    "usrmerge",
    "util-linux*",
];

/// Names of packages in a dependency field, as alternatives of each other within an entry.
/// Versions and architectures are left out: apt has minded them.
pub fn parse(field: &str) -> Vec<Vec<String>> {
    let entries = field.split(',').map(|entry| {
        let names = entry.split('|').filter_map(|one| {
            let name = one.trim().split([' ', '(', '[', ':', '<']).next()?;
            (!name.is_empty()).then(|| name.to_owned())
        });
        names.collect::<Vec<_>>()
    });
    entries.filter(|names| !names.is_empty()).collect()
}

/// Whether a package is one of [`HOUSEKEEPING`].
pub fn is_housekeeping(name: &str) -> bool {
    HOUSEKEEPING
        .iter()
        .any(|entry| match entry.split_once('*') {
            Some((head, tail)) => name.starts_with(head) && name.ends_with(tail),
            None => name == *entry,
        })
}

/// The packages among `all` (by name) that `named` need in a guest, `named` among them. A named package
/// that is itself housekeeping gets all it depends on.
pub fn needed(named: &[String], all: &BTreeMap<String, Candidate>) -> BTreeSet<String> {
    let mut providers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for candidate in all.values() {
        for name in candidate.provides.iter().flatten() {
            providers.entry(name).or_default().push(&candidate.name);
        }
    }
    let mut found = BTreeSet::new();
    for everything in [false, true] {
        let roots = named.iter().map(String::as_str);
        let mut open: Vec<&str> = roots
            .filter(|name| is_housekeeping(name) == everything)
            .collect();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        while let Some(name) = open.pop() {
            let Some(candidate) = all.get(name) else {
                continue;
            };
            if !seen.insert(&candidate.name) {
                continue;
            }
            found.insert(candidate.name.clone());
            for depend in candidate.depends.iter().flatten() {
                let by = providers.get(depend.as_str());
                let by = by.into_iter().flatten().copied();
                let real = by.chain([depend.as_str()]);
                open.extend(real.filter(|name| everything || !is_housekeeping(name)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(packages: &[(&str, &str, &str)]) -> BTreeMap<String, Candidate> {
        let candidate = |(name, depends, provides): &(&str, &str, &str)| {
            let candidate = Candidate {
                name: (*name).to_owned(),
                depends: parse(depends),
                provides: parse(provides),
                ..Candidate::default()
            };
            ((*name).to_owned(), candidate)
        };
        packages.iter().map(candidate).collect()
    }

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn fields_are_names_and_alternatives() {
        let parsed = parse("libc6 (>= 2.36), perl:any | perl5, a [amd64] <!nocheck>,, ");
        assert_eq!(parsed, [vec!["libc6"], vec!["perl", "perl5"], vec!["a"]]);
    }

    #[test]
    fn dependencies_are_followed_but_not_into_housekeeping() {
        let all = all(&[
            (
                "redis-server",
                "lsb-base, redis-tools, init-system-helpers",
                "",
            ),
            ("redis-tools", "libc6, adduser, libssl3", ""),
            ("libc6", "libgcc-s1", ""),
            ("libgcc-s1", "gcc-12-base, libc6", ""),
            ("libssl3", "debconf (>= 0.5) | debconf-2.0", ""),
            ("gcc-12-base", "", ""),
            ("lsb-base", "", ""),
            ("adduser", "passwd", ""),
            ("passwd", "", ""),
            ("init-system-helpers", "perl-base", ""),
            ("perl-base", "", ""),
            ("debconf", "perl-base", "debconf-2.0"),
        ]);
        let found = needed(&named(&["redis-server"]), &all);
        let expected = [
            "libc6",
            "libgcc-s1",
            "libssl3",
            "redis-server",
            "redis-tools",
        ];
        assert!(found.iter().eq(expected), "{found:?}");
    }

    #[test]
    fn who_provides_a_name_stands_for_it() {
        let all = all(&[
            ("web", "httpd-cgi | other", ""),
            ("tiny", "", "httpd-cgi (= 1)"),
        ]);
        assert!(needed(&named(&["web"]), &all).iter().eq(["tiny", "web"]));
    }

    #[test]
    fn named_housekeeping_is_there_whole() {
        let all = all(&[("perl", "perl-base", ""), ("perl-base", "", "")]);
        let found = needed(&named(&["perl"]), &all);
        assert!(found.iter().eq(["perl", "perl-base"]));
    }
}
