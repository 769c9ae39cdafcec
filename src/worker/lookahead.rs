//! A look at the requests of a batch before the first is served: those of their nodes that have no fd are opened with a
//! single request to the broker instead of one each, most of them for this batch alone.
//!
//! It only guesses. The guest may change a request between this look and the time it is served; then a node has an fd
//! that nobody needs, or gets one when it is used. What is not in the usual form is left out.

use super::chain::{Chain, Table};
use super::device::Memory;
use super::dirty_log::DirtyLog;
use super::fs::{FileSystem, Use};
use super::fuse::operation::NodeId;
use super::fuse::wire::{InHeader, Opcode};
use super::regions::Regions;

/// Opens the nodes of these requests, as far as they will need them, until [`FileSystem::end_visits`].
pub fn visit(fs: &FileSystem, memory: &Memory, table: Table, heads: &[u16]) {
    let mut regions = Regions::new(memory);
    fs.visit(heads.iter().filter_map(|head| node(&mut regions, Chain::new(table, *head))));
}

/// The node whose fd a request will use, and how.
fn node(regions: &mut Regions<'_, DirtyLog>, mut chain: Chain) -> Option<(NodeId, Use)> {
    let first = chain.next(regions).ok()??;
    if first.writable || (first.length as usize) < size_of::<InHeader>() {
        return None;
    }
    let header: InHeader = regions.read(first.address)?;
    Some((NodeId(header.nodeid), use_of(Opcode::from_raw(header.opcode)?)?))
}

/// How such a request uses the inode itself. Others work on what is open, or give the node up.
fn use_of(opcode: Opcode) -> Option<Use> {
    match opcode {
        // A directory that one name is looked for in is one that others will be looked for in.
        Opcode::Lookup | Opcode::OpenDir => Some(Use::Often),
        Opcode::GetAttr
        | Opcode::SetAttr
        | Opcode::ReadLink
        | Opcode::Open
        | Opcode::GetXattr
        | Opcode::ListXattr
        | Opcode::Statx => Some(Use::Once),
        _ => None,
    }
}
