//! Whether a built-in guest can do anything with its arguments; told before anything starts, since the guest
//! itself could only panic.

use abi::arguments::{self, Argument, Value};
use std::net::Ipv4Addr;

/// Checks the arguments `words` of the guest `guest`. Of a guest that is not built in nothing is known.
///
/// # Errors
/// The word, and what the guest takes.
pub fn check(guest: &str, words: &[String]) -> Result<(), String> {
    let Some(known) = arguments::of(guest) else {
        return Ok(());
    };
    for word in words {
        let wrong = |why: String| Err(format!("{word}: {why}"));
        let Some((key, value)) = word.split_once('=') else {
            return wrong("it takes KEY=VALUE".into());
        };
        match known.clone().find(|(name, _)| *name == key) {
            None => {
                let keys: Vec<_> = known.map(|(name, _)| name).collect();
                return wrong(format!(
                    "the guest '{guest}' has no argument '{key}'; it takes {}",
                    keys.join(", ")
                ));
            }
            Some(argument) if !fits(value, argument) => {
                return wrong(format!("{key} takes {}", words_of(argument)));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// As the guest would read it.
fn fits(text: &str, (_, value): Argument) -> bool {
    match value {
        Value::Number(least, most) => text
            .parse()
            .is_ok_and(|number: u64| (least..=most).contains(&number)),
        Value::Word(words) => words.contains(&text),
        Value::Address => text.parse::<Ipv4Addr>().is_ok(),
        Value::Network => text.split_once('/').is_some_and(|(address, bits)| {
            address.parse::<Ipv4Addr>().is_ok() && bits.parse().is_ok_and(|bits: u8| bits <= 32)
        }),
    }
}

fn words_of((_, value): Argument) -> String {
    match value {
        Value::Number(0, u64::MAX) => "a number".into(),
        Value::Number(least, most) => format!("a number from {least} to {most}"),
        Value::Word(words) => words.join(", "),
        Value::Address => "an IPv4 address".into(),
        Value::Network => "an IPv4 address and its prefix length, as 10.77.0.2/24".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn said(guest: &str, word: &str) -> String {
        let checked = check(guest, &[word.to_owned()]);
        checked.map_or_else(|why| why, |()| "fits".into())
    }

    #[test]
    fn what_a_guest_cannot_read_is_told_and_the_rest_is_not() {
        for (guest, word) in [
            ("counter", "ticks=18446744073709551615"),
            ("counter", "hz=0"),
            ("disk", "mode=mixed"),
            ("kv", "ip=10.0.0.7/8"),
            ("kv", "gw=10.0.0.1"),
            ("/a/file", "anything"),
        ] {
            assert_eq!(said(guest, word), "fits", "{guest} {word}");
        }
        for (guest, word, why) in [
            ("counter", "ticks=abc", "a number"),
            ("counter", "ticks=", "a number"),
            ("counter", "ticks=-1", "a number"),
            ("counter", "ticks=18446744073709551616", "a number"),
            ("counter", "ticks=3 hz=5", "a number"),
            ("counter", "hz=4294967296", "from 0 to 4294967295"),
            ("counter", "tick=3", "it takes hz, ticks, iterations"),
            ("counter", "ticks", "KEY=VALUE"),
            ("counter", "port=7", "no argument 'port'"),
            ("echo", "port=0", "from 1 to 65535"),
            ("kv", "ip=10.0.0.7", "prefix length"),
            ("kv", "ip=10.0.0.7/33", "prefix length"),
            ("kv", "gw=router", "an IPv4 address"),
            ("disk", "mode=both", "read, write, mixed"),
        ] {
            let said = said(guest, word);
            assert!(said.contains(why), "{guest} {word}: {said}");
        }
    }

    /// The keys `source` reads.
    fn keys(source: &str) -> impl Iterator<Item = &str> {
        let reads = ["args.parse(\"", "args.get(\""];
        reads
            .into_iter()
            .flat_map(|read| source.split(read).skip(1))
            .filter_map(|rest| rest.split('"').next())
    }

    macro_rules! source {
        ($guest:literal) => {
            (
                $guest,
                include_str!(concat!("../../", $guest, "/src/main.rs")),
            )
        };
    }

    #[test]
    fn each_guest_reads_what_is_declared_for_it_and_nothing_else() {
        let network = include_str!("../../runtime/src/net.rs");
        let sources = [
            source!("counter"),
            source!("clock"),
            source!("echo"),
            source!("disk"),
            source!("kv"),
            source!("reset"),
        ];
        assert_eq!(sources.len(), crate::BUILT_IN.len());
        for (guest, source) in sources {
            let networked = source.contains("Stack::new(args)");
            let read: BTreeSet<_> = keys(source)
                .chain(keys(network).filter(|_| networked))
                .collect();
            let declared: BTreeSet<_> = arguments::of(guest)
                .expect("a built-in guest")
                .map(|(key, _)| key)
                .collect();
            assert_eq!(read, declared, "{guest}");
        }
    }
}
