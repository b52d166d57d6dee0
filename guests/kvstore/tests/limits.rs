//! Memory: what clients can take, and what is taken for nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kvstore::{Client, Limits, Server};

const START_MS: u64 = 1_700_000_000_000;

thread_local! {
    /// Allocations of this thread so far.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes this thread has allocated and not given back, and the most there ever were.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// The host's allocator, counting.
struct Counting;

// SAFETY: every call is passed on to an allocator that keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        let (held, most) = HELD.get();
        let held = held + layout.size();
        HELD.set((held, most.max(held)));
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let (held, most) = HELD.get();
        HELD.set((held.saturating_sub(layout.size()), most));
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend(format!("${}\r\n", word.len()).bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Gives a client `input` once and takes all its output.
fn ask(server: &mut Server, client: &mut Client, input: &[u8]) -> Vec<u8> {
    assert_eq!(server.serve(client, input), input.len());
    let output = client.output().to_vec();
    server.sent(client, output.len());
    output
}

#[test]
fn known_keys_are_served_without_an_allocation() {
    let mut server = Server::new(Limits::for_heap(32 << 20), 1, Box::new(|| START_MS));
    let mut client = server.connect();
    let pipeline = [
        command(&[b"SET", b"key", b"value"]),
        command(&[b"GET", b"key"]),
        command(&[b"set", b"lock", b"me", b"px", b"60000"]),
        command(&[b"SET", b"lock", b"you", b"NX", b"PX", b"60000"]),
        command(&[b"INCR", b"counter"]),
        command(&[b"MGET", b"key", b"counter", b"nosuch"]),
        command(&[b"EXPIRE", b"key", b"100"]),
        command(&[b"PTTL", b"key"]),
        command(&[b"EXISTS", b"key", b"nosuch"]),
        command(&[b"PING"]),
    ]
    .concat();
    let mut rounds = |count: usize| {
        for _ in 0..count {
            assert_eq!(server.serve(&mut client, &pipeline), pipeline.len());
            {
                let sent = client.output().len();
                server.sent(&mut client, sent);
            };
        }
    };
    // The counter grows to two digits, which is the last thing that needs room.
    rounds(10);
    let before = ALLOCATIONS.get();
    rounds(80);
    assert_eq!(ALLOCATIONS.get() - before, 0);
}

#[test]
fn a_full_store_refuses_and_keeps_what_it_has() {
    let limits = Limits::for_heap(1 << 20);
    let mut server = Server::new(limits, 1, Box::new(|| START_MS));
    let mut client = server.connect();
    let value = [b'v'; 1000];
    let refused = (0..).find(|key: &u32| {
        let set = command(&[b"SET", key.to_string().as_bytes(), &value]);
        ask(&mut server, &mut client, &set) != b"+OK\r\n"
    });
    let refused = refused.unwrap();
    assert!(refused > 300, "full after {refused} kB of 512");
    assert!(server.store().bytes() <= limits.store_bytes_max);
    let oom = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n";
    let append = command(&[b"APPEND", b"0", &value]);
    assert_eq!(ask(&mut server, &mut client, &append), oom);
    let swap = command(&[b"SET", b"0", &[b'w'; 2000], b"GET"]);
    assert_eq!(ask(&mut server, &mut client, &swap), oom);
    let get = command(&[b"GET", b"0"]);
    let kept = [b"$1000\r\n", &value[..], b"\r\n"].concat();
    assert_eq!(ask(&mut server, &mut client, &get), kept);
    // The same size fits in place, and what is deleted makes room.
    let set = command(&[b"SET", b"0", &value]);
    assert_eq!(ask(&mut server, &mut client, &set), b"+OK\r\n");
    ask(&mut server, &mut client, &command(&[b"DEL", b"1", b"2"]));
    assert_eq!(ask(&mut server, &mut client, &append), b":2000\r\n");
}

#[test]
fn values_up_to_the_limit_stream_through_in_pieces() {
    let limits = Limits::for_heap(64 << 20);
    assert_eq!(limits.bulk_bytes_max, 2 << 20);
    let mut server = Server::new(limits, 1, Box::new(|| START_MS));
    let mut client = server.connect();
    let value: Vec<u8> = (0..limits.bulk_bytes_max)
        .map(|at| (at % 251) as u8)
        .collect();
    let mut replies = Vec::new();
    let script = [
        command(&[b"SET", b"big", &value]),
        command(&[b"GET", b"big"]),
    ]
    .concat();
    for piece in script.chunks(1460) {
        replies.extend(ask(&mut server, &mut client, piece));
    }
    let expected = [b"+OK\r\n$2097152\r\n", &value[..], b"\r\n"].concat();
    assert!(replies == expected, "{} bytes", replies.len());
    assert!(
        server.buffer_bytes() < 64 * 1024,
        "{} bytes kept",
        server.buffer_bytes()
    );
    // One byte more is refused as soon as its length is known.
    let refused = ask(
        &mut server,
        &mut client,
        b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$2097153\r\n",
    );
    assert_eq!(refused, b"-ERR Protocol error: invalid bulk length\r\n");
    assert!(client.is_closing());
}

#[test]
fn endless_commands_and_lines_are_cut_off() {
    let mut server = Server::new(Limits::for_heap(1 << 20), 1, Box::new(|| START_MS));
    let argument = command(&[&[b'x'; 1000]]).split_off(b"*1\r\n".len());
    for (start, more, expected) in [
        (&b"*60000\r\n"[..], &argument[..], "too big request"),
        (b"", b"no end of the line ", "too big inline request"),
        (b"*3", b"0", "invalid multibulk length"),
        (b"*1\r\n$3", b"0", "invalid bulk length"),
    ] {
        let mut client = server.connect();
        assert_eq!(ask(&mut server, &mut client, start), b"");
        let reply = (0..10_000)
            .map(|_| ask(&mut server, &mut client, more))
            .find(|reply| !reply.is_empty())
            .expect("never cut off");
        assert_eq!(
            String::from_utf8_lossy(&reply),
            format!("-ERR Protocol error: {expected}\r\n")
        );
        assert!(client.is_closing());
        server.disconnect(client);
    }
    assert_eq!(server.buffer_bytes(), 0);
}

#[test]
fn unfinished_commands_of_many_clients_stay_within_the_budget() {
    let limits = Limits::for_heap(4 << 20);
    let mut server = Server::new(limits, 1, Box::new(|| START_MS));
    let (before, _) = HELD.get();
    HELD.set((before, before));
    let unfinished = [&b"*2\r\n$4\r\nECHO\r\n$60000\r\n"[..], &[b'x'; 59_999]].concat();
    let mut cut_off = 0;
    let mut clients: Vec<Client> = (0..64).map(|_| server.connect()).collect();
    for client in &mut clients {
        for piece in unfinished.chunks(1460) {
            server.serve(client, piece);
        }
        cut_off += usize::from(client.is_closing());
    }
    assert!((1..60).contains(&cut_off), "{cut_off} cut off");
    let (_, most) = HELD.get();
    let extra = clients.len() * 4 * 16 * 1024;
    assert!(
        most - before <= limits.buffer_bytes_max + extra,
        "{} bytes",
        most - before
    );
    // The others still work, and so does a newcomer.
    let mut newcomer = server.connect();
    assert_eq!(ask(&mut server, &mut newcomer, b"PING\r\n"), b"+PONG\r\n");
    // And when some have gone, there is room again for all of what the first one wants.
    for client in clients.drain(1..) {
        server.disconnect(client);
    }
    let reply = ask(&mut server, &mut clients[0], b"x\r\n");
    assert_eq!(reply.len(), b"$60000\r\n\r\n".len() + 60_000);
}

#[test]
fn a_client_that_takes_no_replies_gets_no_more_work_done() {
    let mut server = Server::new(Limits::for_heap(4 << 20), 1, Box::new(|| START_MS));
    let mut client = server.connect();
    ask(
        &mut server,
        &mut client,
        &command(&[b"SET", b"key", &[b'v'; 5000]]),
    );
    let gets = command(&[b"GET", b"key"]).repeat(600);
    let mut rest = &gets[..];
    let mut replies = 0;
    while !rest.is_empty() || !client.output().is_empty() {
        let taken = server.serve(&mut client, rest);
        rest = &rest[taken..];
        let waiting = client.output().len();
        assert!(
            (1..=16 * 1024 + 5010).contains(&waiting),
            "{waiting} bytes waiting"
        );
        assert!(
            server.buffer_bytes() < 200 * 1024,
            "{} bytes",
            server.buffer_bytes()
        );
        assert_eq!(
            server.serve(&mut client, rest).min(waiting / 16_384),
            0,
            "worked on"
        );
        // The client takes a little at a time.
        let sent = waiting.min(700);
        replies += sent;
        server.sent(&mut client, sent);
    }
    assert_eq!(replies, 600 * 5009);
}

#[test]
fn transactions_and_watches_stay_within_the_budget() {
    let limits = Limits::for_heap(4 << 20);
    let expected = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n";
    // Short keys and short commands: what takes most memory for what is sent.
    let keys: Vec<[u8; 2]> = (0..10_000u16).map(u16::to_le_bytes).collect();
    let words: Vec<&[u8]> = std::iter::once(&b"WATCH"[..])
        .chain(keys.iter().map(|key| &key[..]))
        .collect();
    let endless = [
        command(&[b"WATCH", b"a"]),
        command(&words),
        [command(&[b"MULTI"]), command(&[b"PING"]).repeat(1000)].concat(),
    ];
    for input in endless {
        let mut server = Server::new(limits, 1, Box::new(|| START_MS));
        let mut client = server.connect();
        let (before, _) = HELD.get();
        HELD.set((before, before));
        let refused = (0..100_000).any(|_| {
            let reply = ask_all(&mut server, &mut client, &input);
            reply.ends_with(expected)
        });
        assert!(refused, "never refused");
        let (_, most) = HELD.get();
        let extra = limits.command_bytes_max + 4 * 16 * 1024;
        assert!(
            most - before <= limits.buffer_bytes_max + extra,
            "{} bytes",
            most - before
        );
        // The others still work, with all there is.
        let mut other = server.connect();
        assert_eq!(ask(&mut server, &mut other, b"PING\r\n"), b"+PONG\r\n");
        let last = ask(&mut server, &mut client, b"EXEC\r\n");
        assert!(last.starts_with(b"-E"), "nothing is done by halves");
        server.disconnect(client);
        server.disconnect(other);
        assert_eq!(server.buffer_bytes(), 0);
    }
}

/// As [`ask`], for more than a client may send before it takes its replies.
fn ask_all(server: &mut Server, client: &mut Client, mut input: &[u8]) -> Vec<u8> {
    let mut replies = Vec::new();
    while !input.is_empty() || client.is_waiting() {
        let taken = server.serve(client, input);
        input = &input[taken..];
        let output = client.output().len();
        replies.extend_from_slice(client.output());
        server.sent(client, output);
        assert!(taken + output > 0, "stuck");
    }
    replies
}

#[test]
fn a_transaction_is_done_whole_though_its_reply_is_too_large() {
    let mut server = Server::new(Limits::for_heap(4 << 20), 1, Box::new(|| START_MS));
    let mut client = server.connect();
    let value = vec![b'v'; 100_000];
    for piece in command(&[b"SET", b"key", &value]).chunks(16_000) {
        ask(&mut server, &mut client, piece);
    }
    let transaction = [
        command(&[b"MULTI"]),
        command(&[b"GET", b"key"]).repeat(3),
        command(&[b"SET", b"done", b"yes"]),
        command(&[b"EXEC"]),
    ]
    .concat();
    let reply = ask(&mut server, &mut client, &transaction);
    assert!(reply.ends_with(b"-ERR reply exceeds the maximum allowed size\r\n"));
    assert!(client.is_closing());
    let mut other = server.connect();
    let done = ask(&mut server, &mut other, &command(&[b"GET", b"done"]));
    assert_eq!(done, b"$3\r\nyes\r\n");
}

#[test]
fn clients_beyond_the_limit_are_told_so_and_sent_away() {
    let limits = Limits {
        clients_max: 3,
        ..Limits::for_heap(1 << 20)
    };
    let mut server = Server::new(limits, 1, Box::new(|| START_MS));
    let mut clients: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    let mut beyond: Vec<Client> = (0..5).map(|_| server.connect()).collect();
    for client in &mut beyond {
        assert_eq!(client.output(), b"-ERR max number of clients reached\r\n");
        assert!(client.is_closing());
        // What it sends is thrown away, however much it is.
        assert_eq!(server.serve(client, &[b'x'; 100_000]), 100_000);
        assert_eq!(client.output(), b"-ERR max number of clients reached\r\n");
    }
    for client in &mut clients {
        assert_eq!(ask(&mut server, client, b"PING\r\n"), b"+PONG\r\n");
    }
    // That one of those goes makes no room; that one of the others goes does.
    server.disconnect(beyond.pop().unwrap());
    assert!(server.connect().is_closing());
    server.disconnect(clients.pop().unwrap());
    let mut next = server.connect();
    assert_eq!(ask(&mut server, &mut next, b"PING\r\n"), b"+PONG\r\n");
}

#[test]
fn a_reply_too_large_is_refused() {
    let limits = Limits::for_heap(64 << 20);
    let mut server = Server::new(limits, 1, Box::new(|| START_MS));
    let mut client = server.connect();
    let value = vec![b'v'; limits.bulk_bytes_max - 10_000];
    for piece in command(&[b"SET", b"key", &value]).chunks(16_000) {
        ask(&mut server, &mut client, piece);
    }
    let refused = ask(
        &mut server,
        &mut client,
        &command(&[b"MGET", b"key", b"key", b"key"]),
    );
    assert_eq!(refused, b"-ERR reply exceeds the maximum allowed size\r\n");
    assert!(client.is_closing());
}
