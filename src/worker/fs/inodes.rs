//! The inodes that the guest knows: one node id per (mount, device, inode number), with an exact count of the
//! references that the guest holds.
//!
//! A node id finds its inode by index ([`Slots`]); an identity finds it through a sharded hash table. The
//! reference count of an inode changes only under the lock of its shard, which is what makes "look up or
//! insert" and "forget the last reference" exclude each other.
//!
//! Lock order: a shard, then the slots. No system call runs under a shard's lock.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::residence::{HotFd, Residence};
use super::slots::Slots;
use super::visits::Touched;
use crate::worker::fuse::operation::NodeId;
use crate::worker::heap::Spares;

/// Shards of the identity table; a power of two.
const SHARDS: u64 = 64;

/// What makes two paths the same inode while an fd keeps it from being reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Mount id; unique over time from Linux 6.8 on.
    pub mount: u64,
    /// Device (the kernel's 12:20 bits): one mount can show several, as btrfs subvolumes do.
    pub device: u32,
    /// Inode number.
    pub ino: u64,
}

impl Identity {
    /// The identity in a `statx` answer.
    pub fn of(st: &libc::statx) -> Self {
        Identity {
            mount: st.stx_mnt_id,
            device: (st.stx_dev_major << 20) | (st.stx_dev_minor & 0xf_ffff),
            ino: st.stx_ino,
        }
    }

    /// Is the mount's id one that is never used again? Those are counted from 2^31 on, so that nobody takes one for the
    /// other (`MNT_UNIQUE_ID_OFFSET` in `fs/namespace.c`).
    pub fn has_unique_mount(&self) -> bool {
        self.mount >= 1 << 31
    }

    /// Whether both are on the same mounted file system.
    pub fn same_volume(&self, other: &Identity) -> bool {
        self.mount == other.mount && self.device == other.device
    }
}

/// One inode that the guest knows.
pub struct Inode {
    /// Its node id.
    pub id: NodeId,
    /// File type (`S_IFMT` bits).
    pub kind: u32,
    /// Which inode of the host it is.
    pub identity: Identity,
    /// References that the guest holds; changes only under the shard's lock, 0 once it is gone.
    nlookup: AtomicU64,
    /// Its fd, or what it can be opened by.
    pub residence: Residence,
    /// Whether it was used lately.
    pub touched: Touched,
    /// Where the xattr map keeps `security.capability` as a `trusted.*` attribute: whether there may be one.
    pub may_have_capability: AtomicBool,
    /// Whether there may be set-id bits.
    pub may_have_set_id: AtomicBool,
}

thread_local! {
    /// Memory for the inodes that this thread comes to know next.
    static SPARES: Spares<Inode> = const { Spares::new() };
}

/// There may be millions: with its two reference counts and what the allocator needs, one is 128 bytes.
const _: () = assert!(size_of::<Inode>() <= 104);

impl Inode {
    /// References that the guest holds now.
    pub fn nlookup(&self) -> u64 {
        self.nlookup.load(Ordering::Relaxed)
    }

    /// Did it get lost in a migration? Every request for it fails.
    pub fn is_lost(&self) -> bool {
        self.kind == 0
    }

    /// Is it a directory?
    pub fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }
}

/// What [`Inodes::find_or_insert`] found.
pub enum Found {
    /// It was not known yet; the fd was taken.
    New(NodeId),
    /// It was known, and held open.
    Hot(NodeId),
    /// One of this identity is known but cold: it may be this inode, or an earlier one with its number. No
    /// reference was taken.
    Cold(Arc<Inode>),
    /// It was not known, and there was no fd to take.
    NoFd,
}

/// All inodes that the guest knows.
pub struct Inodes {
    slots: Slots<Inode>,
    shards: Box<[Shard]>,
    hasher: DefaultHashBuilder,
}

#[repr(align(128))]
struct Shard(Mutex<HashTable<Arc<Inode>>>);

impl Inodes {
    /// A table with nothing in it.
    pub fn new() -> Self {
        Inodes {
            // The root's id is not dealt out: it is the same in every session.
            slots: Slots::new(NodeId::ROOT.0 + 1),
            shards: (0..SHARDS).map(|_| Shard(Mutex::new(HashTable::new()))).collect(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    fn shard(&self, identity: &Identity) -> (MutexGuard<'_, HashTable<Arc<Inode>>>, u64) {
        let hash = self.hasher.hash_one(identity);
        // The table uses the top and the low bits; the shard comes from the middle.
        let index = ((hash >> 32) % SHARDS) as usize;
        let Shard(shard) = &self.shards[index];
        (shard.lock().unwrap_or_else(PoisonError::into_inner), hash)
    }

    /// The inode of a node id.
    pub fn get(&self, id: NodeId) -> Option<Arc<Inode>> {
        self.slots.get(id.0)
    }

    /// Finds a known inode that is hot, and takes a reference for the guest; `mode` is what it was found with. A cold one may
    /// be another inode with a number that was used again, so it doesn't count as found.
    pub fn find_hot(&self, identity: &Identity, mode: u16) -> Option<NodeId> {
        let (shard, hash) = self.shard(identity);
        let inode = shard.find(hash, |inode| inode.identity == *identity)?;
        inode.residence.is_hot().then(|| found(inode, mode))
    }

    /// The inode of this identity.
    pub fn find(&self, identity: &Identity) -> Option<Arc<Inode>> {
        let (shard, hash) = self.shard(identity);
        shard.find(hash, |inode| inode.identity == *identity).cloned()
    }

    /// Takes a reference to an inode that was found; `false` when it was forgotten meanwhile, or another has its identity.
    pub fn take(&self, inode: &Arc<Inode>) -> bool {
        let (shard, hash) = self.shard(&inode.identity);
        let known = shard.find(hash, |other| Arc::ptr_eq(other, inode)).is_some();
        if known {
            take_reference(inode);
        }
        known
    }

    /// Is there a known inode of this identity that is hot? A guess, as [`Inodes::knows`].
    pub fn knows_hot(&self, identity: &Identity) -> bool {
        let (shard, hash) = self.shard(identity);
        shard.find(hash, |inode| inode.identity == *identity).is_some_and(|inode| inode.residence.is_hot())
    }

    /// Is there a known inode of this identity? A guess: it may be gone at once.
    pub fn knows(&self, identity: &Identity) -> bool {
        let (shard, hash) = self.shard(identity);
        shard.find(hash, |inode| inode.identity == *identity).is_some()
    }

    /// Takes a reference to the inode of this identity, which was found with `mode`, making it known if it isn't yet; then
    /// `fd`, an `O_PATH` fd of it, is taken and kept.
    pub fn find_or_insert(&self, identity: Identity, mode: u16, fd: &mut Option<HotFd>) -> Found {
        let (mut shard, hash) = self.shard(&identity);
        if let Some(inode) = shard.find(hash, |inode| inode.identity == identity) {
            if !inode.residence.is_hot() {
                return Found::Cold(Arc::clone(inode));
            }
            return Found::Hot(found(inode, mode));
        }
        let Some(fd) = fd.take() else { return Found::NoFd };
        let id = self.slots.reserve();
        let inode = SPARES.with(|spares| {
            spares.make(Inode {
                id: NodeId(id),
                kind: u32::from(mode) & libc::S_IFMT,
                identity,
                nlookup: AtomicU64::new(1),
                residence: Residence::hot(fd),
                touched: Touched::default(),
                may_have_capability: AtomicBool::new(true),
                may_have_set_id: AtomicBool::new(true),
            })
        });
        shard.insert_unique(hash, Arc::clone(&inode), |inode| self.hasher.hash_one(inode.identity));
        self.slots.set(id, inode);
        Found::New(NodeId(id))
    }

    /// The identity now belongs to another inode of the host: only the node id leads to this one any more.
    pub fn disown(&self, inode: &Arc<Inode>) {
        let (mut shard, hash) = self.shard(&inode.identity);
        if let Ok(entry) = shard.find_entry(hash, |other| Arc::ptr_eq(other, inode)) {
            entry.remove();
        }
    }

    /// Gives up references of the guest; more than there are (a guest's mistake) count as all of them. The
    /// root stays whatever the guest says.
    /// The inode, when that was the last one.
    pub fn forget(&self, id: NodeId, count: u64) -> Option<Arc<Inode>> {
        let inode = self.slots.get(id.0)?;
        let (mut shard, hash) = self.shard(&inode.identity);
        let held = inode.nlookup.load(Ordering::Relaxed);
        if held == 0 || id == NodeId::ROOT {
            // Another thread has just dropped the last one, or it is the root.
            return None;
        }
        let left = held.saturating_sub(count);
        inode.nlookup.store(left, Ordering::Relaxed);
        if left > 0 {
            return None;
        }
        if let Ok(entry) = shard.find_entry(hash, |other| Arc::ptr_eq(other, &inode)) {
            entry.remove();
        }
        self.slots.remove_if(id.0, |_| true);
        self.slots.release(id.0);
        drop(shard);
        Some(inode)
    }

    /// Forgets everything but a new root, as at the start of a session.
    pub fn reset(&self, root: Identity, kind: u32, fd: HotFd) {
        for Shard(shard) in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for inode in shard.iter() {
                inode.nlookup.store(0, Ordering::Relaxed);
            }
            let dropped = std::mem::take(&mut *shard);
            drop(shard);
            drop(dropped);
        }
        self.slots.clear();
        self.insert_at(NodeId::ROOT, 1, root, kind, Residence::hot(fd));
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.slots.live()
    }

    /// Makes a migrated guest's node known under the id that it has; `nlookup` is what the guest holds. An inode of
    /// this identity that is known already keeps the identity: then only the node id leads to this one.
    pub fn insert_at(
        &self,
        id: NodeId,
        nlookup: u64,
        identity: Identity,
        kind: u32,
        residence: Residence,
    ) -> Arc<Inode> {
        let (nlookup, may_have_capability) = (AtomicU64::new(nlookup), AtomicBool::new(true));
        let (may_have_set_id, touched) = (AtomicBool::new(true), Touched::default());
        let inode = Arc::new(Inode {
            id,
            kind,
            identity,
            nlookup,
            residence,
            touched,
            may_have_capability,
            may_have_set_id,
        });
        let (mut shard, hash) = self.shard(&identity);
        self.slots.restore(id.0, Arc::clone(&inode));
        if !inode.is_lost() && shard.find(hash, |other| other.identity == identity).is_none() {
            shard.insert_unique(hash, Arc::clone(&inode), |inode| self.hasher.hash_one(inode.identity));
        }
        inode
    }

    /// All inodes that the guest holds references to, and the root.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.slots.all().into_iter().map(|(_, inode)| inode).collect()
    }

    /// Above every node id that was ever given out.
    pub fn next(&self) -> u64 {
        self.slots.next()
    }

    /// See [`Slots::continue_from`].
    pub fn continue_from(&self, next: u64, live: usize) {
        self.slots.continue_from(next, live);
    }
}

impl Default for Inodes {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes a reference to an inode that was found with `mode`, for the guest. The caller holds the shard's lock.
fn found(inode: &Inode, mode: u16) -> NodeId {
    take_reference(inode);
    inode.saw_mode(mode);
    inode.id
}

/// Adds a reference. The caller holds the shard's lock.
fn take_reference(inode: &Inode) {
    let held = inode.nlookup.load(Ordering::Relaxed);
    inode.nlookup.store(held.saturating_add(1), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::super::keeper::Keeper;
    use super::super::seats::Bounds;
    use super::*;
    use crate::config::InodeFileHandles;
    use crate::protocol::Services;

    const REGULAR: u16 = libc::S_IFREG as u16;

    fn identity(ino: u64) -> Identity {
        Identity { mount: 1, device: 2, ino }
    }

    fn fd() -> HotFd {
        let bounds = Bounds::within(1024, 1);
        let keeper = Keeper::new(InodeFileHandles::Never, None, Services::default(), bounds, Arc::default());
        keeper.seat(std::fs::File::open("/").unwrap().into())
    }

    fn take(inodes: &Inodes, ino: u64) -> Arc<Inode> {
        match inodes.find_or_insert(identity(ino), REGULAR, &mut Some(fd())) {
            Found::New(id) | Found::Hot(id) => inodes.get(id).unwrap(),
            Found::Cold(_) | Found::NoFd => panic!("neither known nor new"),
        }
    }

    #[test]
    fn references_are_counted_exactly() {
        let inodes = Inodes::new();
        inodes.reset(identity(1), libc::S_IFDIR, fd());
        let a = take(&inodes, 7);
        let again = take(&inodes, 7);
        assert!(Arc::ptr_eq(&a, &again));
        assert_eq!(a.nlookup(), 2);
        assert_eq!(inodes.find_hot(&identity(7), REGULAR), Some(a.id));
        assert_eq!(a.nlookup(), 3);
        inodes.forget(a.id, 2);
        assert!(inodes.get(a.id).is_some());
        inodes.forget(a.id, 1);
        assert!(inodes.get(a.id).is_none());
        assert_eq!(inodes.find_hot(&identity(7), REGULAR), None);
        assert_ne!(take(&inodes, 7).id, a.id, "the guest's kernel may still know the old one");
    }

    #[test]
    fn too_many_forgets_do_no_harm() {
        let inodes = Inodes::new();
        inodes.reset(identity(1), libc::S_IFDIR, fd());
        let a = take(&inodes, 7);
        inodes.forget(a.id, u64::MAX);
        inodes.forget(a.id, u64::MAX);
        inodes.forget(NodeId::ROOT, u64::MAX);
        inodes.forget(NodeId(0), 1);
        inodes.forget(NodeId(u64::MAX), 1);
        assert!(inodes.get(NodeId::ROOT).is_some());
        let b = take(&inodes, 8);
        let c = take(&inodes, 9);
        assert_ne!(b.id, c.id);
    }

    #[test]
    fn racing_lookups_and_forgets_agree() {
        let inodes = Inodes::new();
        inodes.reset(identity(1), libc::S_IFDIR, fd());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2000 {
                        let inode = take(&inodes, round % 3 + 2);
                        assert_eq!(inodes.get(inode.id).unwrap().identity, inode.identity);
                        inodes.forget(inode.id, 1);
                    }
                });
            }
        });
        for ino in 2..5 {
            assert_eq!(take(&inodes, ino).nlookup(), 1, "all references were given back");
        }
    }
}
