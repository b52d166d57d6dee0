//! Commands on the connection.

use super::integer;
use crate::command::{Call, Done};
use crate::error::CommandError;
use crate::reply::Protocol;

/// The version of Redis whose behaviour this is.
pub(crate) const VERSION: &str = "7.0.15";
/// Most bytes of a client's name, which it holds as long as it is connected.
const NAME_MAX: usize = 256;
/// The only user there is; it needs no password.
const USER: &[u8] = b"default";

pub(crate) fn ping<'a>(call: &mut Call<'a>) -> Done<'a> {
    match call.args.len() {
        1 => call.reply.simple("PONG"),
        2 => call.reply.bulk(call.args.at(1)),
        _ => return Err(CommandError::Arity("ping", None)),
    }
    Ok(())
}

pub(crate) fn echo<'a>(call: &mut Call<'a>) -> Done<'a> {
    call.reply.bulk(call.args.at(1));
    Ok(())
}

pub(crate) fn select<'a>(call: &mut Call<'a>) -> Done<'a> {
    if integer(call.args.at(1))? != 0 {
        return Err(CommandError::DbIndex);
    }
    call.reply.ok();
    Ok(())
}

pub(crate) fn quit<'a>(call: &mut Call<'a>) -> Done<'a> {
    call.reply.ok();
    call.session.closing = true;
    Ok(())
}

pub(crate) fn auth<'a>(call: &mut Call<'a>) -> Done<'a> {
    match call.args.len() {
        2 => return Err(CommandError::NoPassword),
        3 => check_user(call.args.at(1))?,
        _ => return Err(CommandError::Syntax),
    }
    call.reply.ok();
    Ok(())
}

fn check_user<'a>(user: &[u8]) -> Done<'a> {
    if user == USER {
        Ok(())
    } else {
        Err(CommandError::WrongPassword)
    }
}

pub(crate) fn hello<'a>(call: &mut Call<'a>) -> Done<'a> {
    let mut protocol = call.session.protocol;
    if let Some(version) = call.args.get(1) {
        protocol = match integer(version).map_err(|_| CommandError::HelloVersion)? {
            2 => Protocol::Two,
            3 => Protocol::Three,
            _ => return Err(CommandError::HelloProtocol),
        };
    }
    let mut name = None;
    let mut at = 2;
    while let Some(option) = call.args.get(at) {
        let left = call.args.len() - at - 1;
        if option.eq_ignore_ascii_case(b"AUTH") && left >= 2 {
            check_user(call.args.at(at + 1))?;
            at += 3;
        } else if option.eq_ignore_ascii_case(b"SETNAME") && left >= 1 {
            name = Some(call.args.at(at + 1));
            check_name(call.args.at(at + 1))?;
            at += 2;
        } else {
            return Err(CommandError::HelloOption(option));
        }
    }
    if let Some(name) = name {
        call.session.name = name.into();
    }
    call.session.protocol = protocol;
    let reply = &mut call.reply;
    reply.set_protocol(protocol);
    reply.map(7);
    for (key, value) in [("server", "redis"), ("version", VERSION)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    for (key, value) in [("proto", protocol as i64), ("id", call.session.id as i64)] {
        reply.bulk(key.as_bytes());
        reply.integer(value);
    }
    for (key, value) in [("mode", "standalone"), ("role", "master")] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"modules");
    reply.array(0);
    Ok(())
}

/// Whether `text` can be shown in a list of words.
fn is_plain(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic)
}

fn check_name<'a>(name: &[u8]) -> Done<'a> {
    if name.len() > NAME_MAX {
        Err(CommandError::TooLongString)
    } else if is_plain(name) {
        Ok(())
    } else {
        Err(CommandError::ClientName)
    }
}

pub(crate) fn client<'a>(call: &mut Call<'a>) -> Done<'a> {
    let sub = call.args.at(1);
    let is = |name: &str| sub.eq_ignore_ascii_case(name.as_bytes());
    let takes = |name, count| {
        if call.args.len() == count {
            Ok(())
        } else {
            Err(CommandError::Arity("client", Some(name)))
        }
    };
    if is("SETNAME") {
        takes("setname", 3)?;
        check_name(call.args.at(2))?;
        call.session.name = call.args.at(2).into();
        call.reply.ok();
    } else if is("GETNAME") {
        takes("getname", 2)?;
        let name = &call.session.name;
        call.reply.bulk_or_null((!name.is_empty()).then_some(name));
    } else if is("ID") {
        takes("id", 2)?;
        call.reply.integer(call.session.id as i64);
    } else if is("SETINFO") {
        takes("setinfo", 4)?;
        let option = call.args.at(2);
        let known = [&b"LIB-NAME"[..], b"LIB-VER"];
        if !known.iter().any(|known| option.eq_ignore_ascii_case(known)) {
            return Err(CommandError::UnrecognizedOption(option));
        }
        if !is_plain(call.args.at(3)) {
            return Err(CommandError::ClientInfoValue(option));
        }
        call.reply.ok();
    } else {
        return Err(CommandError::UnknownSubcommand("CLIENT", sub));
    }
    Ok(())
}
