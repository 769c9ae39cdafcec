//! Requests for property tests: every variant, every field over its whole range.

use proptest::prelude::*;

use super::bounded::{Bytes, List};
use super::handle::{MAC_BYTES, MAX_HANDLE_BYTES};
use super::message::{
    Admit, DeviceKind, Layer, LayerReport, LayerState, MAX_REPORTS, MakeDevice, Permissions, ToBroker,
    TrustedXattr, XattrSetMode,
};
use super::name::{EntryName, TrustedName};
use super::{FileHandle, SealedHandle};

fn layers() -> impl Strategy<Value = Layer> {
    prop::sample::select(vec![Layer::UserNamespace, Layer::ShiftedIds, Layer::Landlock, Layer::Seccomp])
}

fn reports() -> impl Strategy<Value = LayerReport> {
    let states = prop::sample::select(vec![LayerState::Missing, LayerState::Weakened]);
    (layers(), states, ".{0,80}").prop_map(|(layer, state, reason)| LayerReport::new(layer, state, &reason))
}

/// Handles that no broker made.
pub fn forged_handles() -> impl Strategy<Value = SealedHandle> {
    let bytes = prop::collection::vec(any::<u8>(), 0..=MAX_HANDLE_BYTES);
    (any::<u32>(), any::<i32>(), bytes, any::<[u8; MAC_BYTES]>()).prop_map(
        |(mount, handle_type, bytes, mac)| {
            let handle = FileHandle { handle_type, bytes: Bytes::new(&bytes).unwrap() };
            SealedHandle { mount: mount % 4, handle, mac }
        },
    )
}

fn entry_names() -> impl Strategy<Value = EntryName> {
    prop::collection::vec(any::<u8>(), 1..=255)
        .prop_filter_map("not a name", |name| EntryName::new(&name).ok())
}

fn trusted_names() -> impl Strategy<Value = TrustedName> {
    prop::collection::vec(1u8.., 1..=247)
        .prop_map(|rest| TrustedName::new(&[&b"trusted."[..], &rest].concat()).unwrap())
}

fn devices() -> impl Strategy<Value = MakeDevice> {
    let kinds = prop::sample::select(vec![DeviceKind::Block, DeviceKind::Character]);
    (entry_names(), kinds, any::<[u32; 6]>()).prop_map(
        |(name, kind, [mode, umask, major, minor, uid, gid])| {
            let (permissions, umask) = (Permissions::of_mode(mode), Permissions::of_mode(umask));
            MakeDevice { name, kind, permissions, umask, major, minor, uid: uid % 3, gid }
        },
    )
}

fn xattrs() -> impl Strategy<Value = TrustedXattr> {
    let modes = prop::sample::select(vec![XattrSetMode::Any, XattrSetMode::Create, XattrSetMode::Replace]);
    let values = prop::collection::vec(any::<u8>(), 0..300).prop_map(|value| Bytes::new(&value).unwrap());
    prop_oneof![
        trusted_names().prop_map(|name| TrustedXattr::Get { name }),
        (trusted_names(), values, modes).prop_map(|(name, value, mode)| TrustedXattr::Set {
            name,
            value,
            mode
        }),
        Just(TrustedXattr::List),
        trusted_names().prop_map(|name| TrustedXattr::Remove { name }),
    ]
}

/// Any request.
pub fn requests() -> impl Strategy<Value = ToBroker> {
    prop_oneof![
        prop::collection::vec(reports(), 0..=MAX_REPORTS)
            .prop_map(|reports| ToBroker::Confined(List::new(reports).unwrap())),
        Just(ToBroker::Attached),
        Just(ToBroker::Seal),
        // None is no forgery.
        prop::collection::vec(forged_handles(), 1..6)
            .prop_map(|forged| ToBroker::Reopen(List::new(forged).unwrap())),
        (any::<u32>(), prop::collection::vec(forged_handles(), 0..6)).prop_map(|(mount, forged)| {
            let handles = forged.into_iter().map(|forged| forged.handle).collect();
            ToBroker::Admit(Admit { mount: mount % 4, handles: List::new(handles).unwrap() })
        }),
        devices().prop_map(ToBroker::MakeDevice),
        xattrs().prop_map(ToBroker::TrustedXattr),
    ]
}

/// A message with some bytes changed, cut off, inserted or appended.
pub fn mutated(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..6);
    changes.prop_map(move |changes| {
        let mut bytes = bytes.clone();
        for (index, value, change) in changes {
            match change {
                _ if bytes.is_empty() => bytes.push(value),
                0 => bytes.truncate(index.index(bytes.len())),
                1 => bytes.insert(index.index(bytes.len()), value),
                2 => bytes.push(value),
                _ => {
                    let place = index.index(bytes.len());
                    bytes[place] ^= value;
                }
            }
        }
        bytes
    })
}
