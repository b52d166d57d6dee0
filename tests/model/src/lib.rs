//! Models of Tandem's protocols, whose whole spaces [stateright](https://docs.rs/stateright) searches.
//!
//! ```text
//!   lives:  replicas, joiners, arbiter, viewservice, links; any order of all steps; no clock
//!   lease:  one pair and its shared disk; two clocks, pauses, a network that holds what is sent
//! ```
//!
//! Where a part of Tandem decides without I/O, the model runs that part itself: the role machine, the gate, the
//! suppressed outputs and the view machine in [`lives`]; detector, trust, calls and the lease's term in [`lease`].
//! What stands between them is played, rule by rule:
//!
//! | rule of the model | the code it stands for |
//! |---|---|
//! | `lives`: `input`: an output is held before its entry is sent | `Sender::append_linked` and `send_open`, `Recorder`; asserted in `OutputGate::hold` |
//! | `frame`: entries without a gap; heartbeats and welcomes in their place; all else ends the link | `Reader::frame` and `entries` of `logchannel/src/receiver.rs` |
//! | `frame`: an ack for what is received, before it is executed | `Reader::take` and `ReceiverState::put`, likewise |
//! | `answer`: an ack within what was framed and acked | `SenderState::settle` of `logchannel/src/sender/shared.rs` |
//! | a link that is over: its leader reads no more acks, its follower still takes what came | `Reader::take` there; `Reader::run` of `receiver.rs` |
//! | `heartbeat`: what was released, before entries that wait, in place of an older one | `SenderState::delivered`; `Outgoing::push_beat` |
//! | `execute`: suppressed outputs are held, and forgotten once released | `Kept` of `replica/src/duty.rs` |
//! | `Drained`: only behind all that came, and where nobody reads any more | `Receiver::refill` |
//! | `stand`, `State`, `Same`, `Joined` | `hand_over` and `give` of `replica/src/join.rs`; `Rig::take_over` of `backup.rs` |
//! | `offered`, `begin_join`, `give_up`, `close_gate` | those of `replica/src/control.rs` |
//! | `welcome` | `RoleCommand::Welcome` in `Control::carry_out`, likewise |
//! | a leader that waits for the arbiter takes no other message | `Control::test_and_set` blocks |
//! | `Unasked`, `Unheard`, `Delayed`, `Late`: an error is no verdict, and the flag may be set all the same | rules 2 and 4 of `testandset/src/lib.rs` |
//! | `begins`: who is live in a view has the flag of the view before | `replica/src/claim.rs` |
//! | `Rival`: an operator's start in the next view | `Wish::Operator` of `claim.rs` |
//! | `ping`, `spare`, `Said` | `talk`, `ping` and `spare` of `replica/src/report.rs` |
//! | `Restart`: what is durable is there again | `viewservice/src/store.rs`, `Views::new` |
//! | `lease`: `watch` beats and suspects at a tick; `read` takes all there is, and of acks the last | `Link::watch`; `Reader::run` and `take` of `sender/shared.rs` |
//! | the lease ends with the link, and is free with the flag | `Gatekeeper::undecided` and `undisputed` |
//!
//! # What the models do not prove
//!
//! * Anything outside their bounds: more replicas, entries, crashes or changes than the tests name.
//! * That something happens in the end. Stateright's "eventually" is not used: it is not reliable where states come
//!   again. Instead, wherever nothing is under way any more, whoever could go on has to be live and all outputs have
//!   to have left ([`lives::GOES_ON`]). So a machine that is stuck is found, and one that is busy for ever is not.
//! * That the code does what the rules above say. They were read from it, and nothing compares the two line
//!   by line; the simulated lives and the tests of real processes show where the code does otherwise.
//! * The guest's end, goodbyes, orderly stops, and a primary that leaves its machine (`failover`, `move`): for all
//!   others the last is a crash. Console bytes with a slow reader, and disk requests under way: see the simulated
//!   lives. Memory that goes to a joiner while the guest runs. The contents of a divergence: it is noticed where it is.
//! * In `lease`: a backup that finds its link closed while its primary lives and hears nothing of it, as by a
//!   middlebox that resets one side. `Break::ClosedThoughAlive` shows what that breaks. A single write that was begun
//!   under the lease and comes late. Steps shorter than ten milliseconds.

pub mod lease;
pub mod lives;
pub mod oracle;
pub mod views;
pub mod world;

mod channel;
mod control;
