//! A look at the requests of a batch before the first is served: those of their nodes that have no fd get one, with a
//! single request to the broker instead of one each.
//!
//! It only guesses. The guest may change a request between this look and the time it is served; then a node has an fd
//! that nobody needs, or gets one when it is used. What is not in the usual form is left out.

use super::chain::{Chain, Table};
use super::device::Memory;
use super::dirty_log::DirtyLog;
use super::fs::FileSystem;
use super::fuse::operation::NodeId;
use super::fuse::wire::{InHeader, Opcode};
use super::regions::Regions;

/// Gives fds to the nodes of these requests, as far as they will need them.
pub fn prefetch(fs: &FileSystem, memory: &Memory, table: Table, heads: &[u16]) {
    let mut regions = Regions::new(memory);
    fs.prefetch(heads.iter().filter_map(|head| node(&mut regions, Chain::new(table, *head))));
}

/// The node whose fd a request will use.
fn node(regions: &mut Regions<'_, DirtyLog>, mut chain: Chain) -> Option<NodeId> {
    let first = chain.next(regions).ok()??;
    if first.writable || (first.length as usize) < size_of::<InHeader>() {
        return None;
    }
    let header: InHeader = regions.read(first.address)?;
    uses_inode(Opcode::from_raw(header.opcode)?).then_some(NodeId(header.nodeid))
}

/// Does such a request work on the inode itself? Others work on what is open, or give the node up.
fn uses_inode(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Lookup
            | Opcode::GetAttr
            | Opcode::SetAttr
            | Opcode::ReadLink
            | Opcode::Open
            | Opcode::OpenDir
            | Opcode::GetXattr
            | Opcode::ListXattr
            | Opcode::Statx
    )
}
