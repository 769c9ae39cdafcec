//! Any bytes on the broker channel are one message, exactly, or none; the phase table has an answer for each.
//!
//! Input: one byte of choices (phase, services), one of fds, then the datagram.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virtiofsd::protocol::codec::{MAX_MESSAGE, decode, encode};
use virtiofsd::protocol::phase::gate;
use virtiofsd::protocol::{Phase, Services, ToBroker, ToWorker};

fuzz_target!(|input: &[u8]| {
    let [choice, fds, bytes @ ..] = input else { return };
    // What the trusted side sends may have a set in any order; it must only never panic.
    let _ = decode::<ToWorker>(bytes);
    let Some(message) = exact(bytes) else { return };
    let services = Services {
        handles: choice & 1 != 0,
        make_device: choice & 2 != 0,
        trusted_xattr: choice & 4 != 0,
        admit: choice & 8 != 0,
    };
    for phase in [Phase::Starting, Phase::Listening, Phase::Serving] {
        let _ = gate(message.kind(), phase, services, usize::from(*fds));
    }
});

/// A request has one encoding: what is decoded encodes to the same bytes.
fn exact(bytes: &[u8]) -> Option<ToBroker> {
    let message: ToBroker = decode(bytes).ok()?;
    let mut buffer = Box::new([0; MAX_MESSAGE]);
    let len = encode(&message, &mut buffer).expect("it was a message");
    assert_eq!(&buffer[..len], bytes);
    Some(message)
}
