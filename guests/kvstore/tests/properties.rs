//! What holds whatever clients send.

use std::collections::HashMap;

use kvstore::{Client, Expiry, Limits, Server, Store};
use proptest::collection::{hash_set, vec};
use proptest::prelude::*;

const HEAP: usize = 4 << 20;
const START_MS: u64 = 1_700_000_000_000;

fn server() -> Server {
    Server::new(Limits::for_heap(HEAP), 1, Box::new(|| START_MS))
}

fn encode<W: AsRef<[u8]>>(
    words: impl IntoIterator<Item = W, IntoIter: ExactSizeIterator>,
) -> Vec<u8> {
    let words = words.into_iter();
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        out.extend(format!("${}\r\n", word.len()).bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Gives `client` all of `input`, taking its output as it comes, and returns that.
fn feed(server: &mut Server, client: &mut Client, mut input: &[u8]) -> Vec<u8> {
    let mut replies = Vec::new();
    loop {
        let taken = server.serve(client, input);
        input = &input[taken..];
        let output = client.output().len();
        replies.extend_from_slice(client.output());
        server.sent(client, output);
        if output == 0 && input.is_empty() {
            return replies;
        }
        assert!(
            output > 0 || taken > 0,
            "stuck with {} bytes left",
            input.len()
        );
    }
}

/// The strings in a reply.
fn bulks(mut reply: &[u8]) -> Vec<Vec<u8>> {
    let mut bulks = Vec::new();
    while let Some(end) = reply.windows(2).position(|end| end == b"\r\n") {
        let (line, rest) = (&reply[..end], &reply[end + 2..]);
        reply = rest;
        if line[0] == b'$' {
            let length: usize = String::from_utf8_lossy(&line[1..]).parse().unwrap();
            bulks.push(reply[..length].to_vec());
            reply = &reply[length + 2..];
        }
    }
    bulks
}

/// A word of a command, mostly one that means something.
fn word() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "GET",
        "set",
        "DEL",
        "INCRBY",
        "APPEND",
        "MGET",
        "mset",
        "EXPIRE",
        "PTTL",
        "EXISTS",
        "KEYS",
        "HELLO",
        "CLIENT",
        "CONFIG",
        "COMMAND",
        "INFO",
        "DOCS",
        "SETNAME",
        "NX",
        "XX",
        "GET",
        "EX",
        "PX",
        "PXAT",
        "KEEPTTL",
        "3",
        "2",
        "100",
        "-1",
        "a",
        "b",
        "c",
        "*",
        "[a-c]",
        "9223372036854775807",
        "FLUSHALL",
        "MULTI",
        "EXEC",
        "DISCARD",
        "WATCH",
        "UNWATCH",
        "SCAN",
        "COUNT",
        "0",
        "GETSET",
        "GETDEL",
        "PING",
        "ECHO",
        "AUTH",
        "default",
        "",
    ];
    prop_oneof![
        8 => proptest::sample::select(known.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..40),
    ]
}

/// Bytes as clients send them: commands, inline commands, and now and then anything.
fn traffic() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        10 => vec(word(), 1..6).prop_map(encode),
        2 => vec(word(), 0..4).prop_map(|words| [words.join(&b' '), b"\r\n".to_vec()].concat()),
        1 => "[*$+0-9a-z\r\n\"' -]{0,12}".prop_map(String::into_bytes),
    ];
    vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn cuts_do_not_change_replies(input in traffic(), cuts in vec(any::<proptest::sample::Index>(), 0..30)) {
        let mut whole_server = server();
        let mut whole = whole_server.connect();
        let expected = feed(&mut whole_server, &mut whole, &input);

        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(input.len());
        let mut server = server();
        let mut client = server.connect();
        let mut replies = Vec::new();
        let mut from = 0;
        for to in cuts {
            replies.extend(feed(&mut server, &mut client, &input[from..to]));
            from = to;
        }
        // INFO tells the memory in use, which cuts do change.
        if !input.to_ascii_uppercase().windows(4).any(|word| word == b"INFO") {
            prop_assert_eq!(String::from_utf8_lossy(&replies), String::from_utf8_lossy(&expected));
        }
        prop_assert_eq!(client.is_closing(), whole.is_closing());
    }

    #[test]
    fn any_bytes_are_survived(pieces in vec(vec(any::<u8>(), 0..200), 0..20)) {
        let mut server = server();
        let mut client = server.connect();
        for piece in pieces {
            feed(&mut server, &mut client, &piece);
        }
        server.disconnect(client);
        prop_assert_eq!(server.buffer_bytes(), 0);
    }

    #[test]
    fn arguments_arrive_as_sent(words in vec(vec(any::<u8>(), 0..300), 1..20)) {
        let mut server = server();
        let mut client = server.connect();
        let keys: Vec<Vec<u8>> = (0..words.len()).map(|key| vec![b'k', key as u8]).collect();
        let pairs = keys.iter().zip(&words).flat_map(|(key, word)| [key, word]);
        let set: Vec<&[u8]> = std::iter::once(&b"MSET"[..]).chain(pairs.map(|word| &word[..])).collect();
        prop_assert_eq!(feed(&mut server, &mut client, &encode(set)), b"+OK\r\n");
        let get: Vec<&[u8]> = std::iter::once(&b"MGET"[..]).chain(keys.iter().map(|key| &key[..])).collect();
        prop_assert_eq!(feed(&mut server, &mut client, &encode(get)), encode(&words));
    }

    #[test]
    fn a_scan_returns_what_is_there_all_the_time(
        stays in hash_set(0u8..60, 0..40),
        changes in vec(vec((60u8..90, any::<bool>()), 0..8), 0..40),
        count in 1usize..8,
        seed: u64,
    ) {
        let mut server = Server::new(Limits::for_heap(HEAP), seed, Box::new(|| START_MS));
        let mut client = server.connect();
        let name = |key: u8| format!("key {key}").into_bytes();
        // Some are set and removed beforehand, so that there are gaps between those that stay.
        for key in 0..60 {
            feed(&mut server, &mut client, &encode([&b"SET"[..], &name(key), b"x"]));
        }
        for key in (0..60).filter(|key| !stays.contains(key)) {
            feed(&mut server, &mut client, &encode([&b"DEL"[..], &name(key)]));
        }
        let mut changes = changes.into_iter();
        let mut found = Vec::new();
        let mut cursor = b"0".to_vec();
        loop {
            let scan = encode([&b"SCAN"[..], &cursor, b"COUNT", count.to_string().as_bytes()]);
            let reply = feed(&mut server, &mut client, &scan);
            let mut words = bulks(&reply).into_iter();
            cursor = words.next().unwrap();
            prop_assert!(words.len() <= count, "{} keys", words.len());
            found.extend(words);
            if cursor == b"0" {
                break;
            }
            for (key, there) in changes.next().unwrap_or_default() {
                let change = if there {
                    encode([&b"SET"[..], &name(key), b"x"])
                } else {
                    encode([&b"DEL"[..], &name(key)])
                };
                feed(&mut server, &mut client, &change);
            }
            // What stays may change all the same.
            for key in &stays {
                feed(&mut server, &mut client, &encode([&b"APPEND"[..], &name(*key), b"more"]));
            }
        }
        for key in stays {
            let times = found.iter().filter(|found| **found == name(key)).count();
            prop_assert_eq!(times, 1, "key {}", key);
        }
    }

    #[test]
    fn the_store_is_a_map_with_deadlines(steps in vec(step(), 0..400), seed: u64) {
        let mut store = Store::new(usize::MAX / 2, seed);
        let mut model = Model::default();
        for step in steps {
            run(&mut store, &mut model, step);
        }
        for (key, _) in model.live() {
            prop_assert!(store.remove(&key));
        }
        // What is left is past its deadline, and goes when it is swept.
        store.sweep(usize::MAX);
        prop_assert_eq!((store.len(), store.bytes(), store.volatile_len()), (0, 0, 0));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Get(u8),
    Set(u8, Vec<u8>, Expiry),
    Append(u8, Vec<u8>),
    Remove(u8),
    SetDeadline(u8, Option<u64>),
    Pass(u64),
    Sweep(usize),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0u8..24;
    let value = || vec(any::<u8>(), 0..200);
    let expiry = prop_oneof![
        Just(Expiry::Never),
        Just(Expiry::Keep),
        (0u64..200).prop_map(Expiry::At),
    ];
    prop_oneof![
        8 => key().prop_map(Step::Get),
        8 => (key(), value(), expiry).prop_map(|(key, value, expiry)| Step::Set(key, value, expiry)),
        4 => (key(), value()).prop_map(|(key, tail)| Step::Append(key, tail)),
        4 => key().prop_map(Step::Remove),
        4 => (key(), proptest::option::of(0u64..200)).prop_map(|(key, at)| Step::SetDeadline(key, at)),
        2 => (0u64..20).prop_map(Step::Pass),
        2 => (0usize..40).prop_map(Step::Sweep),
        1 => Just(Step::Clear),
    ]
}

/// The store as it should be, without thought for memory.
#[derive(Default)]
struct Model {
    entries: HashMap<Vec<u8>, (Vec<u8>, Option<u64>)>,
    now_ms: u64,
}

impl Model {
    fn live(&mut self) -> HashMap<Vec<u8>, (Vec<u8>, Option<u64>)> {
        let now_ms = self.now_ms;
        self.entries
            .retain(|_, (_, deadline)| deadline.is_none_or(|deadline| deadline >= now_ms));
        self.entries.clone()
    }
}

fn run(store: &mut Store, model: &mut Model, step: Step) {
    let name = |key: u8| format!("key {key}").into_bytes();
    let live = model.live();
    match step {
        Step::Get(key) => {
            let expected = live.get(&name(key));
            assert_eq!(store.get(&name(key)), expected.map(|(value, _)| &value[..]));
            assert_eq!(
                store.deadline_ms(&name(key)),
                expected.map(|(_, deadline)| *deadline)
            );
        }
        Step::Set(key, value, expiry) => {
            store.set(&name(key), &value, expiry).unwrap();
            let deadline = match expiry {
                Expiry::Never => None,
                Expiry::Keep => live.get(&name(key)).and_then(|(_, deadline)| *deadline),
                Expiry::At(deadline) => Some(deadline),
            };
            model.entries.insert(name(key), (value, deadline));
        }
        Step::Append(key, tail) => {
            let entry = model.entries.entry(name(key)).or_default();
            entry.0.extend_from_slice(&tail);
            assert_eq!(store.append(&name(key), &tail), Ok(entry.0.len()));
        }
        Step::Remove(key) => {
            assert_eq!(
                store.remove(&name(key)),
                model.entries.remove(&name(key)).is_some()
            );
        }
        Step::SetDeadline(key, deadline) => {
            assert_eq!(
                store.set_deadline_ms(&name(key), deadline),
                live.contains_key(&name(key))
            );
            if let Some(entry) = model.entries.get_mut(&name(key)) {
                entry.1 = deadline;
            }
        }
        Step::Pass(ms) => {
            model.now_ms += ms;
            store.set_time(model.now_ms);
        }
        Step::Sweep(slots) => store.sweep(slots),
        Step::Clear => {
            store.clear();
            model.entries.clear();
        }
    }
    let mut keys: Vec<Vec<u8>> = store.keys().map(<[u8]>::to_vec).collect();
    keys.sort_unstable();
    let mut expected: Vec<Vec<u8>> = model.live().into_keys().collect();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert!(store.len() >= keys.len());
}
