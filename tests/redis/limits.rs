//! What kv cannot do is said, and nobody is left waiting.

use super::{LIMIT, cluster, end, have_kvm, have_redis_tools, machine, ready, ready_with, tool};
use check::resp::{Client, Reply};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&server, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

/// What a sender is told of a reset: the latter if the server had sent its end before.
const RESET: [ErrorKind; 2] = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];

/// All the server says until it ends the connection, by a reset or without.
fn last_words(mut stream: TcpStream) -> String {
    let mut words = Vec::new();
    match stream.read_to_end(&mut words) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(words).unwrap(),
    }
}

#[test]
fn redis_benchmark_has_two_hundred_clients() {
    let _machine = machine();
    if !have_kvm("redis-benchmark") || !have_redis_tools() {
        return;
    }
    let cluster = cluster("file");
    let pair = ready(&cluster);
    let output = tool("redis-benchmark", cluster.server())
        .args(["-t", "set,get", "-n", "4000", "-c", "200", "--csv"])
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{out}{err}");
    assert!(
        out.contains("\"SET\"") && out.contains("\"GET\""),
        "{out}{err}"
    );
    end(pair);
}

#[test]
fn redis_benchmark_says_which_command_there_is_not() {
    let _machine = machine();
    if !have_kvm("redis-benchmark") || !have_redis_tools() {
        return;
    }
    let cluster = cluster("file");
    let pair = ready(&cluster);
    let output = tool("redis-benchmark", cluster.server())
        .args(["-n", "500", "-c", "10", "--csv"])
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "lists work?");
    assert!(err.contains("unknown command 'LPUSH'"), "{err}");
    end(pair);
}

#[test]
fn clients_beyond_the_limit_are_told_so() {
    const CLIENTS: usize = 4;
    let _machine = machine();
    if !have_kvm("too many clients") {
        return;
    }
    let cluster = cluster("file");
    let pair = ready_with(&cluster, &[&format!("conns={CLIENTS}")]);
    let server = cluster.server();
    let client = || Client::connect(server, LIMIT, LIMIT).unwrap();
    let ping = |client: &mut Client| {
        let pong = client.command(&[b"PING"]).unwrap();
        assert!(matches!(pong, Reply::Simple(text) if text == "PONG"));
    };
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| client()).collect();
    clients.iter_mut().for_each(&ping);
    // Many more at once than are told so at once; the others get their turn.
    let beyond: Vec<TcpStream> = (0..150).map(|_| connect(server)).collect();
    for stream in beyond {
        assert_eq!(last_words(stream), "-ERR max number of clients reached\r\n");
    }
    clients.iter_mut().for_each(ping);
    end(pair);
}

#[test]
fn a_value_too_large_is_refused_and_its_sender_not_left_waiting() {
    let _machine = machine();
    if !have_kvm("values too large") {
        return;
    }
    let refusal = "-ERR Protocol error: invalid bulk length\r\n";
    let cluster = cluster("file");
    let pair = ready(&cluster);
    // This much can be sent, by a client that reads only then; or the host is so loaded that it takes
    // longer than there is, and the reason is found all the same.
    let mut stream = connect(cluster.server());
    stream
        .write_all(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4000000\r\n")
        .unwrap();
    let sent = stream.write_all(&[b'x'; 4_000_000]);
    if let Err(error) = sent {
        assert!(RESET.contains(&error.kind()), "{error}");
    }
    assert_eq!(last_words(stream), refusal);
    // One that never ends is reset, and finds the reason all the same.
    let mut stream = connect(cluster.server());
    stream
        .write_all(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$900000000\r\n")
        .unwrap();
    let error = loop {
        if let Err(error) = stream.write_all(&[b'x'; 100_000]) {
            break error.kind();
        }
    };
    assert!(RESET.contains(&error), "{error}");
    assert_eq!(last_words(stream), refusal);
    end(pair);
}
