//! The page on `kv` lists the commands there are.

use std::collections::BTreeSet;

use kvstore::{Limits, Server};

const PAGE: &str = include_str!("../../../docs/KV.md");

#[test]
fn every_command_is_documented_and_no_other() {
    let table = PAGE
        .split("## ")
        .find(|part| part.starts_with("Commands"))
        .unwrap();
    let documented: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .skip(1)
        .flat_map(|row| row.split('|').nth(1).unwrap().split_whitespace())
        .map(str::to_ascii_lowercase)
        .collect();
    let mut server = Server::new(Limits::for_heap(32 << 20), 1, Box::new(|| 0));
    let mut client = server.connect();
    server.serve(&mut client, b"COMMAND DOCS\r\n");
    let reply = String::from_utf8(client.output().to_vec()).unwrap();
    // Name, then a map of three pairs.
    let lines: Vec<&str> = reply.split("\r\n").collect();
    let there: BTreeSet<String> = lines
        .windows(2)
        .filter(|pair| pair[1] == "*6")
        .map(|pair| pair[0].to_owned())
        .collect();
    assert!(there.len() > 40, "{} commands", there.len());
    assert_eq!(documented, there);
}
