//! Commands that make several others one.

use crate::command::{self, Call, Done};
use crate::error::CommandError;

pub(crate) fn multi<'a>(call: &mut Call<'a>) -> Done<'a> {
    if call.session.transaction.is_open() {
        return Err(CommandError::NestedMulti);
    }
    call.session.transaction.open();
    call.reply.ok();
    Ok(())
}

pub(crate) fn discard<'a>(call: &mut Call<'a>) -> Done<'a> {
    if !call.session.transaction.is_open() {
        return Err(CommandError::WithoutMulti("DISCARD"));
    }
    call.session.transaction.close(call.store);
    call.reply.ok();
    Ok(())
}

/// Watches the keys up to the first there is no memory for.
pub(crate) fn watch<'a>(call: &mut Call<'a>) -> Done<'a> {
    if call.session.transaction.is_open() {
        return Err(CommandError::WatchInMulti);
    }
    let mut room = call.state.buffer_room();
    for key in call.args.from(1) {
        room -= call.session.transaction.watch(call.store, key, room)?;
    }
    call.reply.ok();
    Ok(())
}

pub(crate) fn unwatch<'a>(call: &mut Call<'a>) -> Done<'a> {
    call.session.transaction.unwatch(call.store);
    call.reply.ok();
    Ok(())
}

/// Queues the command of `call` for EXEC.
pub(crate) fn queue<'a>(call: &mut Call<'a>) -> Done<'a> {
    let room = call.state.buffer_room();
    call.session.transaction.queue(call.args, room)?;
    call.reply.simple("QUEUED");
    Ok(())
}

/// Does all that is queued, each with a reply of its own, or nothing. Nobody else's command comes in
/// between, and what fails does not keep the others from being done.
///
/// It takes no argument. Unlike other commands it sees to that itself: there is something to end.
pub(crate) fn exec<'a>(call: &mut Call<'a>) -> Done<'a> {
    if call.args.len() > 1 {
        call.session.transaction.close(call.store);
        return Err(CommandError::ExecArity);
    }
    let transaction = &mut call.session.transaction;
    if !transaction.is_open() {
        return Err(CommandError::WithoutMulti("EXEC"));
    }
    let failed = transaction.has_failed();
    let stale = transaction.is_stale(call.store);
    let queue = transaction.close(call.store);
    if failed {
        return Err(CommandError::ExecAbort);
    }
    if stale {
        call.reply.null_array();
        return Ok(());
    }
    call.reply.array(queue.len());
    for args in queue.commands() {
        command::run_queued(call, args);
    }
    Ok(())
}
