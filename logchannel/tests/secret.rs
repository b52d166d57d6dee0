//! Links over TLS with somebody in between, who passes on what he likes.

mod common;

use common::{
    BASES, LIMIT, PATIENT, backup, entry, hello, identities, lost, nth, primary, secured, sockets,
};
use logchannel::{LinkLost, Received, ReceiverOptions, SenderOptions, answer, offer};
use replay::LogSink;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;

/// Passes on records of TLS until it is told what to do with those to come.
type Meddle = fn(&mut Vec<Vec<u8>>);

/// The next record, whole; none at the end.
fn record(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut record = vec![0; 5];
    from.read_exact(&mut record).ok()?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    from.read_exact(&mut record[5..]).ok()?;
    Some(record)
}

/// A pair whose primary's records pass somebody who meddles with two of them once he is told to: what the backup
/// makes of it.
fn meddled(meddle: Meddle) -> LinkLost {
    let base = BASES[1];
    let ((near, mut between), (to, far)) = (sockets(), sockets());
    let (tell, told) = mpsc::channel::<()>();
    let mut back = (to.try_clone().unwrap(), between.try_clone().unwrap());
    let backward = std::thread::spawn(move || {
        let _ = std::io::copy(&mut back.0, &mut back.1);
        let _ = back.1.shutdown(Shutdown::Both);
    });
    let forward = std::thread::spawn(move || {
        let mut to = to;
        let mut held = Vec::new();
        while let Some(record) = record(&mut between) {
            if told.try_recv().is_err() && held.is_empty() {
                // The backup hangs up once it was lied to.
                if to.write_all(&record).is_err() {
                    break;
                }
                continue;
            }
            held.push(record);
            if held.len() == 2 {
                meddle(&mut held);
                let _ = to.write_all(&held.concat());
                held.clear();
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let (near, far) = secured(near, far);
    let answering = std::thread::spawn(move || answer(far, LIMIT, |_| Ok(None)).unwrap().0);
    let connection = offer(near, &hello(base, PATIENT), LIMIT).unwrap();
    let mut primary = primary(connection, SenderOptions::default());
    let mut backup = backup(answering.join().unwrap(), ReceiverOptions::default());
    let handle = backup.receiver.handle();
    for n in 0..3 {
        primary.sender.append(&entry(base, n)).unwrap();
    }
    assert!(primary.sender.wait_acked());
    tell.send(()).unwrap();
    let end = backup.ended.recv_timeout(LIMIT).unwrap();
    assert_eq!(handle.metrics().forged, 1);
    // What came before is replayed, whatever becomes of the link.
    handle.finish();
    for n in 0..3 {
        let received = backup.receiver.next(true);
        assert_eq!(received, Received::Entry(nth(base, n), entry(base, n)));
    }
    assert_eq!(backup.receiver.next(true), Received::Drained);
    // And the primary hears that its backup is gone: as ever, it asks for the flag.
    assert!(matches!(
        primary.ended.recv_timeout(LIMIT).unwrap(),
        logchannel::LinkEnd::Lost(_)
    ));
    drop((primary, backup));
    forward.join().unwrap();
    backward.join().unwrap();
    lost(end)
}

/// Heartbeats are records, too: there always are some.
#[test]
fn records_replayed_reordered_dropped_or_changed_end_the_link() {
    let ways: [(&str, Meddle); 4] = [
        ("replayed", |records| records.insert(1, records[0].clone())),
        ("reordered", |records| records.swap(0, 1)),
        ("dropped", |records| drop(records.remove(0))),
        ("changed", |records| *records[0].last_mut().unwrap() ^= 1),
    ];
    for (what, meddle) in ways {
        let lost = meddled(meddle);
        assert!(matches!(lost, LinkLost::Forged { .. }), "{what}: {lost}");
    }
}

/// Who speaks plaintext to TLS, or TLS to plaintext, is told what to change.
#[test]
fn one_side_without_tls_is_told_so() {
    let base = BASES[0];
    let greet = |secret_near: bool| {
        let (near, far) = sockets();
        let of_kv = |peer: &tls::Peer| peer.is_host_of("kv");
        let [security, _] = identities();
        let (near, far) = if secret_near {
            let near = security.call(near, tls::Role::Host, of_kv);
            (near.unwrap(), far.into())
        } else {
            (near.into(), security.answer(far, of_kv).unwrap())
        };
        let answering = std::thread::spawn(move || answer(far, LIMIT, |_| Ok(None)).map(|_| ()));
        let offered = offer(near, &hello(base, PATIENT), LIMIT).map(|_| ());
        [offered, answering.join().unwrap()].map(|end| end.unwrap_err().to_string())
    };
    let [primary, backup] = greet(false);
    assert!(primary.contains("the peer speaks TLS"), "{primary}");
    assert!(backup.contains("does not speak TLS"), "{backup}");
    let [_, backup] = greet(true);
    assert!(backup.contains("the peer speaks TLS"), "{backup}");
}
