//! Commands on the server.

use alloc::string::String;
use core::fmt::{self, Write};

use super::connection::VERSION;
use crate::command::{self, COMMANDS, Call, Command, Done};
use crate::error::CommandError;
use crate::glob;
use crate::number::{self, DIGITS_MAX};
use crate::reply::Reply;

pub(crate) fn time<'a>(call: &mut Call<'a>) -> Done<'a> {
    let now_ms = call.store.now_ms();
    call.reply.array(2);
    for value in [now_ms / 1000, now_ms % 1000 * 1000] {
        let mut buffer = [0; DIGITS_MAX];
        call.reply.bulk(number::format(value as i64, &mut buffer));
    }
    Ok(())
}

/// Nothing is saved, so the words that say how to do so change nothing.
pub(crate) fn shutdown<'a>(call: &mut Call<'a>) -> Done<'a> {
    for word in call.args.from(1) {
        let known = [&b"SAVE"[..], b"NOSAVE", b"NOW", b"FORCE"];
        if !known.iter().any(|known| word.eq_ignore_ascii_case(known)) {
            return Err(CommandError::Syntax);
        }
    }
    call.state.shutdown = true;
    call.session.closing = true;
    Ok(())
}

pub(crate) fn config<'a>(call: &mut Call<'a>) -> Done<'a> {
    let sub = call.args.at(1);
    if sub.eq_ignore_ascii_case(b"GET") {
        config_get(call)
    } else if sub.eq_ignore_ascii_case(b"SET") && call.args.len() >= 4 {
        Err(CommandError::ConfigSet(call.args.at(2)))
    } else if sub.eq_ignore_ascii_case(b"SET") {
        Err(CommandError::Arity("config", Some("set")))
    } else {
        Err(CommandError::UnknownSubcommand("CONFIG", sub))
    }
}

/// What clients ask for; nothing of it can be set.
fn config_get<'a>(call: &mut Call<'a>) -> Done<'a> {
    if call.args.len() < 3 {
        return Err(CommandError::Arity("config", Some("get")));
    }
    let limits = call.state.limits;
    let mut buffers = [[0; DIGITS_MAX]; 3];
    let [clients_max, bulk_max, memory_max] = &mut buffers;
    let settings: [(&str, &[u8]); 8] = [
        ("appendonly", b"no"),
        ("databases", b"1"),
        (
            "maxclients",
            number::format(limits.clients_max as i64, clients_max),
        ),
        (
            "maxmemory",
            number::format(limits.store_bytes_max as i64, memory_max),
        ),
        ("maxmemory-policy", b"noeviction"),
        (
            "proto-max-bulk-len",
            number::format(limits.bulk_bytes_max as i64, bulk_max),
        ),
        ("save", b""),
        ("timeout", b"0"),
    ];
    let asked = |name: &str| {
        call.args.from(2).any(|pattern| {
            // Names are in lower case, and patterns in any.
            glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes())
        })
    };
    let count = settings.iter().filter(|(name, _)| asked(name)).count();
    call.reply.map(count);
    for (name, value) in settings {
        if asked(name) {
            call.reply.bulk(name.as_bytes());
            call.reply.bulk(value);
        }
    }
    Ok(())
}

pub(crate) fn command<'a>(call: &mut Call<'a>) -> Done<'a> {
    let Some(sub) = call.args.get(1) else {
        call.reply.array(COMMANDS.len());
        for command in COMMANDS {
            reply_command(&mut call.reply, command);
        }
        return Ok(());
    };
    let all = call.args.len() == 2;
    if sub.eq_ignore_ascii_case(b"COUNT") {
        if !all {
            return Err(CommandError::Arity("command", Some("count")));
        }
        call.reply.integer(COMMANDS.len() as i64);
    } else if sub.eq_ignore_ascii_case(b"INFO") && all {
        call.reply.array(COMMANDS.len());
        for command in COMMANDS {
            reply_command(&mut call.reply, command);
        }
    } else if sub.eq_ignore_ascii_case(b"INFO") {
        call.reply.array(call.args.len() - 2);
        for name in call.args.from(2) {
            match command::find(name) {
                Some(command) => reply_command(&mut call.reply, command),
                None => call.reply.null(),
            }
        }
    } else if sub.eq_ignore_ascii_case(b"DOCS") && all {
        call.reply.map(COMMANDS.len());
        for command in COMMANDS {
            reply_docs(&mut call.reply, command);
        }
    } else if sub.eq_ignore_ascii_case(b"DOCS") {
        let known = || call.args.from(2).filter_map(command::find);
        call.reply.map(known().count());
        for command in known() {
            reply_docs(&mut call.reply, command);
        }
    } else {
        return Err(CommandError::UnknownSubcommand("COMMAND", sub));
    }
    Ok(())
}

/// The ten fields COMMAND gives of each command, the last four empty.
fn reply_command(reply: &mut Reply<'_>, command: &Command) {
    let flags = || command.flags.split_ascii_whitespace();
    let (first, last, step) = command.keys;
    reply.array(10);
    reply.bulk(command.name.as_bytes());
    reply.integer(command.arity.into());
    reply.set(flags().count());
    for flag in flags() {
        reply.simple(flag);
    }
    reply.integer(first.into());
    reply.integer(last.into());
    reply.integer(step.into());
    for _ in 0..3 {
        reply.set(0);
    }
    reply.array(0);
}

fn reply_docs(reply: &mut Reply<'_>, command: &Command) {
    reply.bulk(command.name.as_bytes());
    let fields = [
        ("summary", command.summary),
        ("since", command.since),
        ("group", command.group),
    ];
    reply.map(fields.len());
    for (name, value) in fields {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
}

/// Writes one section's lines.
type Section = fn(&Call<'_>, &mut String) -> fmt::Result;

const SECTIONS: [(&str, Section); 6] = [
    ("Server", info_server),
    ("Clients", info_clients),
    ("Memory", info_memory),
    ("Stats", info_stats),
    ("Replication", info_replication),
    ("Keyspace", info_keyspace),
];

pub(crate) fn info<'a>(call: &mut Call<'a>) -> Done<'a> {
    let all = [&b"all"[..], b"default", b"everything"];
    let asked = |name: &str| {
        call.args.len() == 1
            || call.args.from(1).any(|word| {
                word.eq_ignore_ascii_case(name.as_bytes())
                    || all.iter().any(|all| word.eq_ignore_ascii_case(all))
            })
    };
    let mut text = String::new();
    for (name, section) in SECTIONS {
        if asked(name) {
            let end = if text.is_empty() { "" } else { "\r\n" };
            // Writing to a string cannot fail.
            let _ = write!(text, "{end}# {name}\r\n").and_then(|()| section(call, &mut text));
        }
    }
    call.reply.verbatim(text.as_bytes());
    Ok(())
}

fn info_server(call: &Call<'_>, out: &mut String) -> fmt::Result {
    let uptime = call.store.now_ms().saturating_sub(call.state.started_ms) / 1000;
    write!(
        out,
        "redis_version:{VERSION}\r\nserver_name:tandem-kv\r\nredis_mode:standalone\r\n\
         arch_bits:64\r\nuptime_in_seconds:{uptime}\r\nuptime_in_days:{}\r\n",
        uptime / 86400
    )
}

fn info_clients(call: &Call<'_>, out: &mut String) -> fmt::Result {
    write!(
        out,
        "connected_clients:{}\r\nmaxclients:{}\r\n",
        call.state.clients, call.state.limits.clients_max
    )
}

fn info_memory(call: &Call<'_>, out: &mut String) -> fmt::Result {
    write!(
        out,
        "used_memory:{}\r\nused_memory_dataset:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:noeviction\r\n",
        call.store.bytes() + call.state.buffer_bytes,
        call.store.bytes(),
        call.store.bytes_max()
    )
}

fn info_stats(call: &Call<'_>, out: &mut String) -> fmt::Result {
    write!(
        out,
        "total_connections_received:{}\r\ntotal_commands_processed:{}\r\nexpired_keys:{}\r\n",
        call.state.connections,
        call.state.commands,
        call.store.expired()
    )
}

fn info_replication(_: &Call<'_>, out: &mut String) -> fmt::Result {
    out.write_str("role:master\r\nconnected_slaves:0\r\n")
}

fn info_keyspace(call: &Call<'_>, out: &mut String) -> fmt::Result {
    if call.store.is_empty() {
        return Ok(());
    }
    write!(
        out,
        "db0:keys={},expires={},avg_ttl=0\r\n",
        call.store.len(),
        call.store.volatile_len()
    )
}
