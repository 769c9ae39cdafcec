//! What an idle inode is kept by: an `O_PATH` fd while it is hot, a handle sealed by the broker once it is cold.
//!
//! Which of the two, the [keeper](super::keeper) decides.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};

use super::seats::InodeSeat;
use super::sys::{QuickFd, Result};
use crate::protocol::bounded::Bytes;
use crate::protocol::{FileHandle, SealedHandle};

/// An inode's fd or sealed handle.
///
/// Readers are recursive: a rename within one directory holds its fd twice.
pub struct Residence(RwLock<State>);

/// The fd of a hot inode, and its seat.
pub struct HotFd {
    fd: QuickFd,
    _seat: InodeSeat,
}

impl HotFd {
    /// An `O_PATH` fd in its seat.
    pub(super) fn new(fd: OwnedFd, seat: InodeSeat) -> Self {
        HotFd { fd: fd.into(), _seat: seat }
    }
}

impl AsFd for HotFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

enum State {
    Hot(HotFd),
    Cold(ColdHandle),
    /// A migrated guest holds it, but it was not found here.
    Lost,
}

/// Bytes of a sealed handle that are kept within the inode: enough for the handles of ext4, XFS, Btrfs and tmpfs.
const SHORT: usize = 46;

/// A sealed handle: mount (4 bytes), type (4), seal (16), handle (the rest). There may be millions, so one of usual
/// length takes no memory of its own.
pub(super) enum ColdHandle {
    Short { len: u8, packed: [u8; SHORT] },
    Long(Box<[u8]>),
}

impl ColdHandle {
    fn new(sealed: &SealedHandle) -> Self {
        let mut packed = Vec::with_capacity(SHORT);
        packed.extend_from_slice(&sealed.mount.to_ne_bytes());
        packed.extend_from_slice(&sealed.handle.handle_type.to_ne_bytes());
        packed.extend_from_slice(&sealed.mac);
        packed.extend_from_slice(sealed.handle.bytes.as_slice());
        let mut short = [0; SHORT];
        match (short.get_mut(..packed.len()), u8::try_from(packed.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(&packed);
                ColdHandle::Short { len, packed: short }
            }
            _ => ColdHandle::Long(packed.into_boxed_slice()),
        }
    }

    /// Mount, type, seal and handle.
    fn parts(&self) -> Option<(u32, i32, [u8; 16], &[u8])> {
        let packed = match self {
            ColdHandle::Short { len, packed } => packed.get(..usize::from(*len))?,
            ColdHandle::Long(packed) => packed,
        };
        let (mount, rest) = packed.split_first_chunk()?;
        let (handle_type, rest) = rest.split_first_chunk()?;
        let (mac, bytes) = rest.split_first_chunk()?;
        Some((u32::from_ne_bytes(*mount), i32::from_ne_bytes(*handle_type), *mac, bytes))
    }

    fn sealed(&self) -> Option<SealedHandle> {
        let (mount, handle_type, mac, bytes) = self.parts()?;
        Some(SealedHandle { mount, handle: FileHandle { handle_type, bytes: Bytes::new(bytes).ok()? }, mac })
    }

    /// Is it this seal?
    pub(super) fn is(&self, other: &SealedHandle) -> bool {
        let SealedHandle { mount, handle: FileHandle { handle_type, bytes }, mac } = other;
        self.parts() == Some((*mount, *handle_type, *mac, bytes.as_slice()))
    }

    /// Is it of this handle, on whatever mount?
    pub(super) fn is_of(&self, handle: &FileHandle) -> bool {
        self.parts().is_some_and(|(_, handle_type, _, bytes)| {
            (handle_type, bytes) == (handle.handle_type, handle.bytes.as_slice())
        })
    }
}

/// An inode's `O_PATH` fd, which stays open while this value lives.
pub enum InodeFd<'a> {
    /// That of a hot inode, which stays hot meanwhile.
    Hot(MappedRwLockReadGuard<'a, QuickFd>),
    /// That of a cold inode, which stays cold.
    Visit(Rc<HotFd>),
}

impl AsFd for InodeFd<'_> {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            InodeFd::Hot(fd) => fd.as_fd(),
            InodeFd::Visit(fd) => fd.as_fd(),
        }
    }
}

impl Residence {
    /// A hot one.
    pub fn hot(fd: HotFd) -> Self {
        Residence(RwLock::new(State::Hot(fd)))
    }

    /// That of an inode which was not found where the guest migrated to.
    pub fn lost() -> Self {
        Residence(RwLock::new(State::Lost))
    }

    /// Is there an fd now? Only sure as long as nobody seals.
    pub fn is_hot(&self) -> bool {
        matches!(&*self.0.read_recursive(), State::Hot(_))
    }

    /// The fd, if it is hot.
    pub(super) fn fd(&self) -> Option<InodeFd<'_>> {
        let hot = RwLockReadGuard::try_map(self.0.read_recursive(), |state| match state {
            State::Hot(hot) => Some(&hot.fd),
            State::Cold(_) | State::Lost => None,
        });
        hot.ok().map(InodeFd::Hot)
    }

    /// The sealed handle, if it is cold.
    pub fn sealed(&self) -> Option<Result<SealedHandle>> {
        match &*self.0.read_recursive() {
            State::Hot(_) => None,
            State::Cold(cold) => Some(cold.sealed().ok_or(Errno::EIO)),
            State::Lost => Some(Err(Errno::ESTALE)),
        }
    }

    /// Is it cold and the inode of another handle than this test wants?
    pub(super) fn is_cold_but_not(&self, is_it: impl FnOnce(&ColdHandle) -> bool) -> bool {
        match &*self.0.read_recursive() {
            State::Hot(_) | State::Lost => false,
            State::Cold(cold) => !is_it(cold),
        }
    }

    /// Puts an fd in the place of the handle; `false`, and the fd closed, when it is hot already.
    pub(super) fn warm(&self, fd: HotFd) -> bool {
        let mut state = self.0.write();
        let cold = matches!(*state, State::Cold(_));
        if cold {
            *state = State::Hot(fd);
        }
        cold
    }

    /// Puts a handle in the place of the fd; `false` when it is in use.
    pub(super) fn cool(&self, sealed: &SealedHandle) -> bool {
        let Some(mut state) = self.0.try_write() else { return false };
        let before = std::mem::replace(&mut *state, State::Cold(ColdHandle::new(sealed)));
        // The fd closes when nobody waits for the lock.
        drop(state);
        drop(before);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_handles_of_every_length_come_back() {
        for len in 0..=crate::protocol::handle::MAX_HANDLE_BYTES {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let handle = FileHandle { handle_type: -7, bytes: Bytes::new(&bytes).unwrap() };
            let sealed = SealedHandle { mount: 3, handle, mac: [9; 16] };
            let cold = ColdHandle::new(&sealed);
            assert_eq!(matches!(cold, ColdHandle::Short { .. }), len <= 22, "{len}");
            assert_eq!(cold.sealed().as_ref(), Some(&sealed));
            assert!(cold.is(&sealed) && cold.is_of(&sealed.handle));
            let other = FileHandle { handle_type: 7, ..sealed.handle.clone() };
            assert!(!cold.is_of(&other));
            assert!(!cold.is(&SealedHandle { mount: 4, ..sealed.clone() }));
            assert!(!cold.is(&SealedHandle { mac: [8; 16], ..sealed }));
        }
    }
}
