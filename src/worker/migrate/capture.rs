//! The source's side: what the guest holds, as a [`DeviceState`]. The guest stands still meanwhile.
//!
//! Nothing changes here: when the destination refuses the stream, the guest goes on as if nothing had been.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::errno::Errno;
use thiserror::Error;

use super::find::{below, find_places, link};
use super::format::{
    DeviceState, EncodeError, FileHandle, Handle, HandleSource, Inode as Record, InodeLocation, MAX_INODES,
    MAX_STREAM,
};
use super::places::Location;
use super::walk::{Walker, components};
use crate::config::{MigrationConfig, MigrationMode};
use crate::protocol::{MAX_FDS, SealedHandle};
use crate::worker::broker_client::BrokerClientError;
use crate::worker::fs::FileSystem;
use crate::worker::fs::inodes::{Identity, Inode};
use crate::worker::fs::sys;
use crate::worker::fuse::operation::NodeId;

/// Open flags that only the first open is about.
const ONCE: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY;
/// References to the root that a stream tells, beyond those of inodes that are named in it.
const ROOT_REFERENCES: u64 = 2;
/// Lost inodes that are logged one by one.
const MAX_LOGGED: usize = 20;
/// Inodes of one mount that are tried to find the path of the mount.
const MAX_TRIES: usize = 32;

/// Why the guest's state can't be told.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The root of the share can't be read.
    #[error("cannot look into the shared directory: {0}")]
    Share(Errno),
    /// File handles were asked for and there are none.
    #[error(
        "file handles are needed for --migration-mode=file-handles and --migration-verify-handles, and cannot be had \
         (the log says why at the daemon's start); use --migration-mode=find-paths without verification"
    )]
    NoHandles,
    /// The broker doesn't answer.
    #[error("the broker cannot make file handles: {0}")]
    Broker(BrokerClientError),
    /// More than a stream can hold.
    #[error("the guest holds more than a migration stream can tell; let it drop its caches and try again")]
    TooLarge,
    /// The front end doesn't take it.
    #[error(transparent)]
    Write(#[from] EncodeError),
}

/// Everything that another daemon needs to go on for this guest.
///
/// # Errors
/// [`CaptureError`]; an inode that can't be found is none, the stream says that it is invalid.
pub fn capture(fs: &FileSystem, config: &MigrationConfig) -> Result<DeviceState, CaptureError> {
    let mut inodes = fs.inodes.all();
    if inodes.len() > MAX_INODES {
        return Err(CaptureError::TooLarge);
    }
    inodes.sort_by_key(|inode| inode.id.0);
    let mut state = DeviceState {
        next_inode: fs.inodes.next(),
        next_handle: fs.handles.next(),
        negotiated: (&fs.negotiated()).into(),
        ..DeviceState::default()
    };
    let mut handles = match config.mode {
        MigrationMode::FindPaths if !config.verify_handles => Vec::new(),
        _ => seal_all(fs, &inodes)?,
    };
    let mut locations = match config.mode {
        MigrationMode::FindPaths => by_path(fs, config, &inodes)?,
        MigrationMode::FileHandles => {
            state.mount_paths = mount_paths(fs, &inodes)?;
            by_handle(&inodes, &mut handles, &state.mount_paths)
        }
    };
    let mut named_in = HashMap::new();
    for location in &locations {
        if let Some(InodeLocation::Path { parent, .. }) = location {
            *named_in.entry(*parent).or_insert(0u64) += 1;
        }
    }
    // What is known of each goes over into its record: there may be millions.
    state.inodes.reserve_exact(inodes.len());
    for (place, inode) in inodes.iter().enumerate() {
        let location = match locations.get_mut(place).and_then(Option::take) {
            _ if inode.id == NodeId::ROOT => InodeLocation::RootNode,
            Some(location) => location,
            None => InodeLocation::Invalid,
        };
        let file_handle = handles.get_mut(place).and_then(Option::take);
        // Upstream holds two references to the root that are not the guest's.
        let own = if inode.id == NodeId::ROOT { ROOT_REFERENCES } else { inode.nlookup() };
        let refcount = own.saturating_add(named_in.get(&inode.id.0).copied().unwrap_or(0));
        state.inodes.push(Record { id: inode.id.0, refcount, location, file_handle });
    }
    report_invalid(fs, &state);
    state.handles = open_handles(fs, &inodes);
    Ok(state)
}

/// Names the inodes that will be lost, and what is known of where they were.
fn report_invalid(fs: &FileSystem, state: &DeviceState) {
    let invalid = state.inodes.iter().filter(|inode| matches!(inode.location, InodeLocation::Invalid));
    let invalid: Vec<u64> = invalid.map(|inode| inode.id).collect();
    if invalid.is_empty() {
        return;
    }
    log::warn!(
        "migration: {} of {} inodes have no place that a stream can hold: they were removed while open, or their \
         names are not UTF-8; --migration-mode=file-handles can take them along",
        invalid.len(),
        state.inodes.len()
    );
    for id in invalid.iter().take(MAX_LOGGED) {
        log::warn!("migration: inode {id} is lost; it was last at {}", last_place(fs, NodeId(*id)));
    }
    if invalid.len() > MAX_LOGGED {
        log::warn!("migration: {} further ones are only counted", invalid.len() - MAX_LOGGED);
    }
}

/// The path that the kernel remembers of an inode, which need not lead there any more.
fn last_place(fs: &FileSystem, id: NodeId) -> String {
    let inode = fs.inodes.get(id).filter(|inode| !inode.is_lost());
    let path = inode.and_then(|inode| {
        let fd = fs.fd(&inode).ok()?;
        link(fs, fd.as_fd())
    });
    let prefix = link(fs, fs.resources.share.as_fd()).unwrap_or_default();
    match path.as_deref().and_then(|path| below(path, &prefix)) {
        Some(path) => format!("\"{}\"", path.escape_ascii()),
        None => "a place that nobody remembers".to_owned(),
    }
}

/// Open files and directories; those of inodes that the guest has forgotten can't be used any more.
fn open_handles(fs: &FileSystem, inodes: &[Arc<Inode>]) -> Vec<Handle> {
    let known = |id: NodeId| inodes.binary_search_by_key(&id.0, |inode| inode.id.0).is_ok();
    let mut handles: Vec<Handle> = fs
        .handles
        .all()
        .into_iter()
        .filter(|(_, handle)| known(handle.inode.id))
        .map(|(id, handle)| {
            let directory = if handle.inode.is_dir() { libc::O_DIRECTORY } else { 0 };
            let flags = (handle.flags.cast_signed() & !ONCE) | directory;
            Handle { id: id.0, inode: handle.inode.id.0, source: HandleSource::OpenInode { flags } }
        })
        .collect();
    handles.sort_by_key(|handle| handle.id);
    handles
}

/// Locations by name, for each inode that has one.
fn by_path(
    fs: &FileSystem,
    config: &MigrationConfig,
    inodes: &[Arc<Inode>],
) -> Result<Vec<Option<InodeLocation>>, CaptureError> {
    let never = AtomicBool::new(false);
    find_places(fs, &never).map_err(CaptureError::Share)?;
    let root = root_identity(fs)?;
    let nodes: HashMap<Identity, u64> = inodes
        .iter()
        .filter(|inode| !inode.is_lost() && inode.id != NodeId::ROOT)
        .map(|inode| (inode.identity, inode.id.0))
        .chain([(root, NodeId::ROOT.0)])
        .collect();
    if config.confirm_paths {
        confirm(fs, inodes, &never)?;
    }
    let located = fs.tracker.locate(&root, &nodes, inodes.iter().map(|inode| &inode.identity));
    drop(nodes);
    let mut total = 0;
    let mut locations = Vec::with_capacity(inodes.len());
    for (inode, location) in inodes.iter().zip(located) {
        let location = match location {
            _ if inode.is_lost() || inode.id == NodeId::ROOT => None,
            Some(Location::In { parent, name }) => name.into_c_string().into_string().ok().map(|filename| {
                total += filename.len();
                InodeLocation::Path { parent, filename }
            }),
            Some(Location::At { path }) => String::from_utf8(path).ok().map(|filename| {
                total += filename.len();
                InodeLocation::FullPath { filename }
            }),
            None => None,
        };
        if total > MAX_STREAM / 2 {
            return Err(CaptureError::TooLarge);
        }
        locations.push(location);
    }
    Ok(locations)
}

fn root_identity(fs: &FileSystem) -> Result<Identity, CaptureError> {
    let st = sys::statx_fd(fs.resources.share.as_fd()).map_err(CaptureError::Share)?;
    Ok(Identity::of(&st))
}

/// `--migration-confirm-paths`: looks whether each inode is where it was found; where not, looks for it again.
fn confirm(fs: &FileSystem, inodes: &[Arc<Inode>], never: &AtomicBool) -> Result<(), CaptureError> {
    for inode in inodes.iter().filter(|inode| inode.id != NodeId::ROOT && !inode.is_lost()) {
        if !fs.tracker.leads_to(&inode.identity, |parent, name| holds(fs, parent, name, &inode.identity)) {
            fs.tracker.forget(&inode.identity);
        }
    }
    find_places(fs, never).map_err(CaptureError::Share)
}

/// Is `child` under this name in the directory, as far as can be told without a path?
fn holds(fs: &FileSystem, parent: &Identity, name: &std::ffi::CStr, child: &Identity) -> bool {
    let Some(directory) = fs.inodes.find(parent) else { return false };
    let st = fs.fd(&directory).and_then(|fd| sys::statx_at(fd.as_fd(), name));
    st.is_ok_and(|st| Identity::of(&st) == *child)
}

/// Handles of all inodes, as far as there are any.
fn seal_all(fs: &FileSystem, inodes: &[Arc<Inode>]) -> Result<Vec<Option<FileHandle>>, CaptureError> {
    let broker = fs.resources.broker.as_ref().filter(|_| fs.resources.services.handles);
    let broker = broker.ok_or(CaptureError::NoHandles)?;
    let mut handles: Vec<Option<FileHandle>> = Vec::with_capacity(inodes.len());
    let mut known = HashMap::new();
    for batch in inodes.chunks(MAX_FDS) {
        let mut open = Vec::with_capacity(batch.len());
        for inode in batch.iter().filter(|inode| !inode.is_lost()) {
            if let Some(Ok(sealed)) = inode.residence.sealed() {
                known.insert(inode.id.0, file_handle(inode, &sealed));
            } else if let Ok(fd) = fs.fd(inode) {
                open.push((inode, fd));
            }
        }
        if !open.is_empty() {
            let fds: Vec<_> = open.iter().map(|(_, fd)| fd.as_fd()).collect();
            let results = broker.seal(&fds).map_err(CaptureError::Broker)?;
            for ((inode, _), result) in open.iter().zip(results) {
                known.extend(result.ok().map(|sealed| (inode.id.0, file_handle(inode, &sealed))));
            }
        }
        handles.extend(batch.iter().map(|inode| known.remove(&inode.id.0)));
    }
    Ok(handles)
}

/// In the stream a mount has the id that `statx` tells.
fn file_handle(inode: &Inode, sealed: &SealedHandle) -> FileHandle {
    FileHandle {
        mnt_id: inode.identity.mount,
        handle_type: sealed.handle.handle_type,
        handle: sealed.handle.bytes.as_slice().to_vec(),
    }
}

/// Locations by handle, on mounts that the destination can find: those handles are taken. The root's is only verified.
fn by_handle(
    inodes: &[Arc<Inode>],
    handles: &mut [Option<FileHandle>],
    mounts: &BTreeMap<u64, String>,
) -> Vec<Option<InodeLocation>> {
    let location = |(inode, handle): (&Arc<Inode>, &mut Option<FileHandle>)| {
        let usable =
            |handle: &mut FileHandle| inode.id != NodeId::ROOT && mounts.contains_key(&handle.mnt_id);
        Some(InodeLocation::FileHandle { handle: handle.take_if(usable)? })
    };
    inodes.iter().zip(handles.iter_mut()).map(location).collect()
}

/// The paths of all mounts that the guest holds inodes on.
fn mount_paths(fs: &FileSystem, inodes: &[Arc<Inode>]) -> Result<BTreeMap<u64, String>, CaptureError> {
    let root = root_identity(fs)?;
    let mut paths = BTreeMap::from([(root.mount, ".".to_owned())]);
    let mut tries: HashMap<u64, usize> = HashMap::new();
    for inode in inodes.iter().filter(|inode| !inode.is_lost()) {
        let mount = inode.identity.mount;
        let tried = tries.entry(mount).or_default();
        if paths.contains_key(&mount) || *tried == MAX_TRIES {
            continue;
        }
        *tried += 1;
        if let Some(path) = mount_path(fs, inode).map_err(CaptureError::Share)? {
            paths.insert(mount, path);
        }
    }
    Ok(paths)
}

/// The path of the mount that an inode is on: the first directory on the way to it that is on that mount.
fn mount_path(fs: &FileSystem, inode: &Arc<Inode>) -> sys::Result<Option<String>> {
    let Ok(fd) = fs.fd(inode) else { return Ok(None) };
    let prefix = link(fs, fs.resources.share.as_fd()).unwrap_or_default();
    let path = link(fs, fd.as_fd());
    let names = path.as_deref().and_then(|path| below(path, &prefix)).map(components);
    let Some(Ok(names)) = names else { return Ok(None) };
    let mut walker = Walker::new(fs)?;
    for depth in 1..=names.len() {
        let way = names.get(..depth).unwrap_or_default();
        let Ok(directory) = walker.enter(way, |_, _, _| {}) else { return Ok(None) };
        if directory.identity.mount == inode.identity.mount {
            let names: Option<Vec<&str>> = way.iter().map(|name| name.to_str().ok()).collect();
            return Ok(names.map(|names| names.join("/")));
        }
    }
    Ok(None)
}
