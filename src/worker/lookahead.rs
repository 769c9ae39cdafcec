//! A look at the requests of a batch before the first is served: those of their nodes that have no fd get one, with a
//! single request to the broker instead of one each.
//!
//! It only guesses. The guest may change a request between this look and the time it is served; then a node has an fd
//! that nobody needs, or gets one when it is used. What is not in the usual form is left out.

use virtio_queue::DescriptorChain;
use vm_memory::Bytes;
use zerocopy::FromBytes;

use super::device::Memory;
use super::fs::FileSystem;
use super::fuse::operation::NodeId;
use super::fuse::wire::{InHeader, Opcode};

/// Gives fds to the nodes of these requests, as far as they will need them.
pub fn prefetch(fs: &FileSystem, memory: &Memory, chains: &[DescriptorChain<&Memory>]) {
    fs.prefetch(chains.iter().filter_map(|chain| node(memory, chain.clone())));
}

/// The node whose fd a request will use.
fn node(memory: &Memory, mut chain: DescriptorChain<&Memory>) -> Option<NodeId> {
    let mut header = [0; size_of::<InHeader>()];
    let first =
        chain.next().filter(|first| !first.is_write_only() && first.len() as usize >= header.len())?;
    memory.read_slice(&mut header, first.addr()).ok()?;
    let header = InHeader::read_from_bytes(&header).ok()?;
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
