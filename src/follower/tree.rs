//! The mounts that the guest sees, and how they come to be those of the host.
//!
//! [`Tree::update`] does what is needed to get from one to the other, whatever has happened in between, so an event that
//! is missed or seen twice does no harm, and what goes wrong is tried again.
//!
//! Everything is checked by what a descriptor is, not by the path that led to it: a copy is made of the very mount that
//! the list names, and attached to the mount that stands for the one it is on. Only the directory is found by its path,
//! in a tree where the guest moves directories. If it wins that race, a file system is seen in another directory of the
//! share, until the check after the update ([`Tree::update`] with `verify`) finds it there.
//!
//! Invariant: no descriptor of a mount of the host is kept, since it would make unmounting fail.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use log::{debug, warn};
use nix::errno::Errno;
use sandbox::graft::{GraftError, Namespaces, Place, open_below, place_of};
use sandbox::mountinfo::Mount;
use sandbox::mounts::{MountError, ShareAttrs, clone_share};

use super::plan::{self, Key, Wanted};

/// Most copies that are attached. A descriptor is held for each.
pub const MAX_COPIES: usize = 512;

/// What is attached in the worker's namespace.
struct Copy {
    /// The host's mount that it shows.
    id: u64,
    key: Key,
    path: CString,
    /// The id of the copy.
    mount: u64,
    /// Its root. A copy that was covered when the follower began has none until it is needed.
    root: Option<OwnedFd>,
    read_only: bool,
    /// Its path led elsewhere when the list was last looked at.
    suspect: bool,
}

/// What a [`Tree`] works on.
pub struct Attached {
    /// The share's directory on the host.
    pub share: OwnedFd,
    /// The worker's copy of it.
    pub copy: OwnedFd,
    /// The user namespace whose ids are mapped, if they are.
    pub ids: Option<OwnedFd>,
    /// Gets a byte for each mount that was detached; does not block.
    pub detached: OwnedFd,
}

/// The share on both sides, and what is mounted in it.
pub struct Tree {
    /// The host's mount namespace and the worker's.
    pub namespaces: Namespaces,
    /// The mount of the worker's copy of the share.
    pub copy_mount: u64,
    /// The mount that the share is on on the host.
    host_mount: u64,
    on: Attached,
    /// `--readonly`
    share_read_only: bool,
    copy_read_only: bool,
    /// Parents first.
    copies: Vec<Copy>,
    /// Those that can't be shown; each was told once.
    refused: HashMap<u64, Key>,
    full: bool,
    /// A copy could not be made read-only, which was told.
    busy: bool,
}

/// How an update went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Something was attached or detached.
    pub changed: bool,
    /// Something could not be done that may be possible later.
    pub pending: bool,
}

fn shown(path: &CStr) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(path.to_bytes())
}

impl Tree {
    /// A tree in which nothing is known to be mounted.
    ///
    /// # Errors
    /// When the kernel can't tell mounts apart.
    pub fn new(namespaces: Namespaces, on: Attached, share_read_only: bool) -> Result<Self, Errno> {
        let (host_mount, copy_mount) = (place_of(on.share.as_fd())?.mount, place_of(on.copy.as_fd())?.mount);
        Ok(Self {
            namespaces,
            copy_mount,
            host_mount,
            on,
            share_read_only,
            copy_read_only: share_read_only,
            copies: Vec::new(),
            refused: HashMap::new(),
            full: false,
            busy: false,
        })
    }

    /// The mounts of the host that are to be seen.
    fn wanted(&self, table: Vec<Mount>) -> Vec<Wanted> {
        // The share's path changes when a directory above it is renamed. Without one there is nothing below.
        match self.namespaces.path_of(self.on.share.as_fd()) {
            Ok(directory) => plan::below(table, self.host_mount, &directory),
            Err(_) => Vec::new(),
        }
    }

    /// Learns what is attached already, from the worker's own list: the copies that were made with the share. What has
    /// gone on the host since is detached.
    ///
    /// # Errors
    /// [`GraftError`]: the process must end.
    pub fn adopt(&mut self, host: Vec<Mount>, worker: Vec<Mount>) -> Result<(), GraftError> {
        let Some(top) = worker.iter().find(|mount| mount.id == self.copy_mount) else { return Ok(()) };
        self.copy_read_only = top.read_only;
        let point = top.point.clone();
        let mut attached = plan::below(worker, self.copy_mount, &point);
        for wanted in self.wanted(host) {
            let Some(parent) = self.parent_of(&wanted.key) else { continue };
            let same = |copy: &Wanted| {
                let key = Key { parent, ..wanted.key.clone() };
                copy.key == key && copy.path == wanted.path
            };
            let Some(position) = attached.iter().position(same) else { continue };
            let found = attached.remove(position);
            let mut copy = Copy {
                id: wanted.id,
                key: wanted.key,
                path: wanted.path,
                mount: found.id,
                root: None,
                read_only: found.read_only,
                suspect: false,
            };
            // Where there are more from the start than may come, the others' descriptors have to wait until they are needed.
            if self.copies.len() < MAX_COPIES {
                self.open_root(&mut copy);
            }
            self.copies.push(copy);
        }
        for left in attached.into_iter().rev() {
            if let Some((fd, _)) =
                self.at(self.on.copy.as_fd(), &left.path).filter(|(_, at)| at.mount == left.id)
            {
                debug!("{} has gone meanwhile", shown(&left.path));
                self.detach(fd.as_fd(), &left.path)?;
            }
        }
        Ok(())
    }

    /// The copy of the mount that a mount with this key is on.
    fn parent_of(&self, key: &Key) -> Option<u64> {
        if key.parent == self.host_mount {
            return Some(self.copy_mount);
        }
        self.copies.iter().find(|copy| copy.id == key.parent).map(|copy| copy.mount)
    }

    fn at(&self, root: BorrowedFd<'_>, path: &CStr) -> Option<(OwnedFd, Place)> {
        let fd = open_below(root, path).ok()?;
        let place = place_of(fd.as_fd()).ok()?;
        Some((fd, place))
    }

    /// Whether the copy is what its path leads to.
    fn is_at(&self, copy: &Copy, path: &CStr) -> bool {
        let place = self.at(self.on.copy.as_fd(), path).map(|(_, place)| place);
        place == Some(Place { mount: copy.mount, is_root: true })
    }

    fn open_root(&self, copy: &mut Copy) {
        if copy.root.is_none() {
            let found = self.at(self.on.copy.as_fd(), &copy.path);
            let expected = Place { mount: copy.mount, is_root: true };
            copy.root = found.filter(|(_, place)| *place == expected).map(|(fd, _)| fd);
        }
    }

    fn detach(&self, root: BorrowedFd<'_>, path: &CStr) -> Result<(), GraftError> {
        match self.namespaces.detach(root)? {
            Ok(()) => debug!("{} is not shown any more", shown(path)),
            Err(errno) => warn!("{} can't be taken away from the guest: {errno}", shown(path)),
        }
        // A full pipe says the same as one more byte.
        let _ = nix::unistd::write(&self.on.detached, &[0]);
        Ok(())
    }

    /// Brings the copies to what the host's list says. With `verify`, those that should be right are looked at too.
    ///
    /// # Errors
    /// [`GraftError`]: the process must end.
    pub fn update(&mut self, table: Vec<Mount>, verify: bool) -> Result<Progress, GraftError> {
        let top_read_only = table.iter().find(|mount| mount.id == self.host_mount).map(|top| top.read_only);
        let wanted = self.wanted(table);
        let mut progress = Progress::default();
        // Told once, until there is room again for more than one or two.
        self.full &= self.copies.len() > MAX_COPIES / 2;
        self.refused.retain(|id, key| wanted.iter().any(|wanted| wanted.id == *id && wanted.key == *key));
        progress.changed |= self.remove_gone(&wanted, verify)?;
        progress.pending |= self.mirror_read_only(&wanted, top_read_only)?;
        for one in &wanted {
            let was = self.attach(one, &wanted)?;
            progress.changed |= was.changed;
            progress.pending |= was.pending;
        }
        Ok(progress)
    }

    /// Detaches what is gone or somewhere else, and takes over the paths of what stays. Whether it did something, or has
    /// to look again.
    fn remove_gone(&mut self, wanted: &[Wanted], verify: bool) -> Result<bool, GraftError> {
        let wanted: HashMap<u64, &Wanted> = wanted.iter().map(|wanted| (wanted.id, wanted)).collect();
        let mut copies = std::mem::take(&mut self.copies);
        let (mut gone, mut again) = (Vec::new(), false);
        for copy in &mut copies {
            let now = wanted.get(&copy.id).filter(|now| now.key == copy.key);
            let stays = !gone.contains(&copy.key.parent)
                && now.is_some_and(|now| {
                    let was_suspect = copy.suspect;
                    copy.suspect = !self.may_be_at(copy, now, verify || was_suspect);
                    // A directory may have been renamed since the list was read: a new list tells.
                    again |= copy.suspect && !was_suspect;
                    !(copy.suspect && was_suspect)
                });
            match now.filter(|_| stays) {
                Some(now) => copy.path.clone_from(&now.path),
                None => gone.push(copy.id),
            }
        }
        // What is on others comes first: a mount over a root would be detached in its place.
        for mut copy in
            copies.extract_if(.., |copy| gone.contains(&copy.id)).collect::<Vec<_>>().into_iter().rev()
        {
            self.open_root(&mut copy);
            match &copy.root {
                Some(root) => self.detach(root.as_fd(), &copy.path)?,
                None => {
                    warn!("{} can't be found any more, and may stay visible to the guest", shown(&copy.path))
                }
            }
        }
        self.copies = copies;
        Ok(again || !gone.is_empty())
    }

    /// Whether a copy is where it should be now, as far as that can be told.
    fn may_be_at(&self, copy: &Copy, now: &Wanted, look: bool) -> bool {
        let moved = now.path != copy.path;
        // Where something else is on top, the path does not lead to it.
        if now.covered { !moved } else { !(moved || look) || self.is_at(copy, &now.path) }
    }

    /// Whether something is still writable that should not be, or the other way round.
    fn mirror_read_only(&mut self, wanted: &[Wanted], top: Option<bool>) -> Result<bool, GraftError> {
        let mut pending = false;
        let top = self.share_read_only || top.unwrap_or(self.copy_read_only);
        if top != self.copy_read_only {
            match self.namespaces.set_read_only(self.on.copy.as_fd(), top)? {
                Ok(()) => self.copy_read_only = top,
                Err(errno) => pending = self.tell_busy(c".", errno),
            }
        }
        let wanted: HashMap<u64, bool> = wanted.iter().map(|wanted| (wanted.id, wanted.read_only)).collect();
        let mut copies = std::mem::take(&mut self.copies);
        for copy in &mut copies {
            let now = self.share_read_only || wanted.get(&copy.id).copied().unwrap_or(copy.read_only);
            if now == copy.read_only {
                continue;
            }
            self.open_root(copy);
            let Some(root) = &copy.root else { continue };
            match self.namespaces.set_read_only(root.as_fd(), now)? {
                Ok(()) => copy.read_only = now,
                Err(errno) => pending = self.tell_busy(&copy.path, errno),
            }
        }
        self.copies = copies;
        self.busy &= pending;
        Ok(pending)
    }

    /// Tells of it once; it is tried again.
    fn tell_busy(&mut self, path: &CStr, errno: Errno) -> bool {
        if !std::mem::replace(&mut self.busy, true) {
            warn!(
                "\"{}\" can't be made read-only for the guest, or writable, as it is on the host: {errno}. EBUSY: not \
                 before the guest closes what it has open there for writing",
                shown(path)
            );
        }
        true
    }

    /// Shows a mount, if it can be and is not yet.
    fn attach(&mut self, one: &Wanted, all: &[Wanted]) -> Result<Progress, GraftError> {
        let (nothing, pending) = (Progress::default(), Progress { pending: true, ..Progress::default() });
        if self.copies.iter().any(|copy| copy.id == one.id) || self.refused.contains_key(&one.id) {
            return Ok(nothing);
        }
        let Some(parent) = self.visible_parent(one, all) else { return Ok(nothing) };
        if self.copies.len() >= MAX_COPIES {
            if !std::mem::replace(&mut self.full, true) {
                warn!(
                    "{MAX_COPIES} mounts are shown in the share: the guest sees no more until some of them go"
                );
            }
            return Ok(nothing);
        }
        let copy = match self.copy_of(one) {
            Some(Ok(copy)) => copy,
            Some(Err(reason)) => {
                let hint = match reason {
                    MountError::IdmapUnsupported { .. } => ". With --worker-ids=identity it is shown",
                    _ => "",
                };
                warn!("the guest does not see what is mounted on \"{}\": {reason}{hint}", shown(&one.path));
                self.refused.insert(one.id, one.key.clone());
                return Ok(nothing);
            }
            // Where it is covered, it is no loss.
            None => return Ok(if one.covered { nothing } else { pending }),
        };
        let Some((target, place)) = self.at(self.on.copy.as_fd(), &one.path) else { return Ok(pending) };
        if place.mount != parent || self.namespaces.attach(copy.as_fd(), target.as_fd())?.is_err() {
            return Ok(pending);
        }
        let Ok(Place { mount, .. }) = place_of(copy.as_fd()) else { return Ok(pending) };
        debug!("{} is shown", shown(&one.path));
        self.copies.push(Copy {
            id: one.id,
            key: one.key.clone(),
            path: one.path.clone(),
            mount,
            root: Some(copy),
            read_only: self.share_read_only || one.read_only,
            suspect: false,
        });
        Ok(Progress { changed: true, pending: false })
    }

    /// The copy that it has to be attached to. What is covered and not shown doesn't count: nobody sees it.
    fn visible_parent(&self, one: &Wanted, all: &[Wanted]) -> Option<u64> {
        let mut key = &one.key;
        loop {
            if let Some(parent) = self.parent_of(key) {
                return Some(parent);
            }
            let below = all.iter().find(|other| other.id == key.parent && other.path == one.path)?;
            key = &below.key;
        }
    }

    /// A detached copy of a mount; `None` if its path doesn't lead to it now.
    fn copy_of(&self, one: &Wanted) -> Option<Result<OwnedFd, MountError>> {
        let (root, place) = self.at(self.on.share.as_fd(), &one.path)?;
        if place != (Place { mount: one.id, is_root: true }) {
            return None;
        }
        let attrs = ShareAttrs { read_only: self.share_read_only, recursive: false };
        Some(clone_share(root.as_fd(), attrs, self.on.ids.as_ref().map(AsFd::as_fd)))
    }
}
