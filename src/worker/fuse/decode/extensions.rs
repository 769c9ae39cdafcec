//! What follows the names of a creating request: security context and supplementary groups.
//!
//! Each extension begins with its length and type and is padded to 8 bytes. The header's `total_extlen` is
//! not used: kernels from 5.17 to 6.2 send security contexts and leave it 0.

use nix::errno::Errno;

use super::cursor::Cursor;
use crate::worker::fuse::negotiate::Negotiated;
use crate::worker::fuse::operation::{CreateExtensions, SuppGroups};
use crate::worker::fuse::wire::{self, InitFlags};

/// The last type number that is a count of security contexts (`FUSE_MAX_NR_SECCTX`).
const MAX_NR_SECCTX: u32 = 31;

/// Reads extensions to the end of the message: each type at most once and only when negotiated.
pub(super) fn extensions<'a>(
    mut rest: Cursor<'a>,
    negotiated: &Negotiated,
) -> Result<CreateExtensions<'a>, Errno> {
    let mut found = CreateExtensions::default();
    let mut want_context = negotiated.has(InitFlags::SECURITY_CTX);
    let mut want_groups = negotiated.has(InitFlags::CREATE_SUPP_GROUP);
    while !rest.0.is_empty() {
        let header: wire::ExtHeader = rest.fixed()?;
        let size = usize::try_from(header.size).map_err(|_| Errno::EINVAL)?;
        let payload = size.checked_sub(size_of::<wire::ExtHeader>()).ok_or(Errno::EINVAL)?;
        let payload = Cursor(rest.bytes(payload)?);
        match header.kind {
            count @ 0..=MAX_NR_SECCTX if want_context => {
                want_context = false;
                security_context(count, payload, &mut found)?;
            }
            wire::EXT_GROUPS if want_groups => {
                want_groups = false;
                groups(payload, &mut found)?;
            }
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(found)
}

/// None (no security module in the guest) or one: no kernel sends more, and we could set no more.
fn security_context<'a>(
    count: u32,
    mut payload: Cursor<'a>,
    found: &mut CreateExtensions<'a>,
) -> Result<(), Errno> {
    match count {
        0 => return padding(payload),
        1 => {}
        _ => return Err(Errno::EINVAL),
    }
    let header: wire::SecCtx = payload.fixed()?;
    let size = usize::try_from(header.size).map_err(|_| Errno::EINVAL)?;
    let name = payload.text()?;
    let value = payload.bytes(size)?;
    if value.is_empty() {
        return Err(Errno::EINVAL);
    }
    found.security_context = Some((name, value));
    padding(payload)
}

fn groups<'a>(mut payload: Cursor<'a>, found: &mut CreateExtensions<'a>) -> Result<(), Errno> {
    let count = payload.fixed::<wire::SuppGroupsHeader>()?.nr_groups;
    let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(size_of::<u32>()));
    found.groups = SuppGroups::new(payload.bytes(length.ok_or(Errno::EINVAL)?)?).ok_or(Errno::EINVAL)?;
    padding(payload)
}

/// An extension ends where its content, rounded up, ends.
fn padding(rest: Cursor<'_>) -> Result<(), Errno> {
    if rest.0.len() < wire::RECORD_ALIGN { Ok(()) } else { Err(Errno::EINVAL) }
}
