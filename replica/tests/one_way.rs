//! A link whose way to the backup is cut, and whose way back is not.

mod common;

use common::primary;
use common::wire::{BASES, LIMIT, ack_answering, hello, until};
use logchannel::framing::{Frame, FrameBuffer};
use logchannel::{SenderOptions, Settings, answer, offer};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const SETTINGS: Settings = Settings {
    heartbeat_ms: 10,
    suspect_ms: 500,
};

/// Keeps in `newest` the last call of the primary that writes to `socket`.
fn hear(mut socket: TcpStream, newest: &AtomicU64) {
    let mut buffer = FrameBuffer::new();
    while let Ok(count @ 1..) = socket.read(buffer.space()) {
        buffer.filled(count);
        while let Some(frame) = buffer.next().unwrap() {
            if let Frame::Heartbeat(heartbeat) = frame {
                newest.store(heartbeat.call, SeqCst);
            }
        }
    }
}

/// Such a backup suspects its primary and goes live, while its acks and its word of that may still be on their way. A
/// primary that took the acks for a sign of being heard would write to the disk they share after that.
#[test]
fn a_backup_that_speaks_but_hears_nothing_renews_no_lease() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let mut backup = accepted.try_clone().unwrap();
    let welcomes = std::thread::spawn(move || answer(accepted, LIMIT, |_| Ok(None)).unwrap());
    let connection = offer(socket, &hello(BASES[0], SETTINGS), LIMIT).unwrap();
    let _connection = welcomes.join().unwrap();
    let primary = primary(connection, SenderOptions::default());
    let newest = Arc::new(AtomicU64::new(0));
    let hears = std::thread::spawn({
        let (socket, newest) = (backup.try_clone().unwrap(), newest.clone());
        move || hear(socket, &newest)
    });
    let mut says = |answers| {
        let ack = ack_answering(BASES[0], 0, 0, answers);
        backup.write_all(&ack).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
    };

    until("the lease is held, by what is heard", || {
        says(newest.load(SeqCst));
        newest.load(SeqCst) > 5 && primary.lease.held() == Some(true)
    });
    // From here on the way there is cut: acks go on, and bring nothing new.
    let last = newest.load(SeqCst);
    until("the lease lapses under acks", || {
        says(last);
        primary.lease.held().is_none()
    });
    assert!(primary.ended.try_recv().is_err(), "the link is up");
    until("the lease is held again, once something is heard", || {
        says(newest.load(SeqCst));
        primary.lease.held() == Some(true)
    });
    drop(primary);
    hears.join().unwrap();
}
