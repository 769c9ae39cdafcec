//! Any message under any negotiated features is answered, and an operation is what it promises to be.
//!
//! Input: one byte of features, then the message as it lies in the descriptor chain.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virtiofsd::worker::fuse::decode::{
    HEADER, MAX_BODY, MAX_DIR_REPLY, MAX_FORGET_BODY, MAX_IOCTL, MAX_XATTR, Message, decode, frame,
};
use virtiofsd::worker::fuse::negotiate::Negotiated;
use virtiofsd::worker::fuse::operation::{
    CreateExtensions, FileName, Lock, LookupName, MAX_SUPP_GROUPS, Operation, SetTime,
};
use virtiofsd::worker::fuse::wire::{InHeader, InitFlags};
use zerocopy::FromBytes;

#[path = "../../../src/worker/fuse/decode/invariants.rs"]
mod invariants;

fuzz_target!(|input: &[u8]| {
    let Some((features, chain)) = input.split_first() else { return };
    let Ok((header, rest)) = InHeader::read_from_prefix(chain) else { return };
    let mut flags = InitFlags::empty();
    flags.set(InitFlags::SETXATTR_EXT, features & 1 != 0);
    flags.set(InitFlags::SECURITY_CTX, features & 2 != 0);
    flags.set(InitFlags::CREATE_SUPP_GROUP, features & 4 != 0);
    let negotiated = Negotiated { minor: 45, flags, ..Negotiated::default() };

    // As the queue does it.
    if let Ok(frame) = frame(&header, chain.len()) {
        assert!(HEADER + frame.body + frame.data <= chain.len());
        assert!(frame.body <= MAX_BODY.max(MAX_FORGET_BODY));
        answer(&Message { header: &header, body: &rest[..frame.body], data: frame.data }, &negotiated);
    }
    // The decoder relies on no frame.
    answer(&Message { header: &header, body: rest, data: usize::from(*features) }, &negotiated);
});

fn answer(message: &Message<'_>, negotiated: &Negotiated) {
    match decode(message, negotiated) {
        Ok(operation) => {
            invariants::check(&operation, message, negotiated);
            assert!(operation.reply_len() <= 288, "{operation:?}");
        }
        Err(errno) => assert!((1..4096).contains(&(errno as i32))),
    }
}
