//! What a process can see of the file tree: a detached clone of one directory, and nothing else.
//!
//! A clone made here is a file descriptor only; it is attached nowhere, so nobody finds it by path, `..` at its
//! root leads nowhere, and it goes away with the last descriptor inside. The one place where it can be attached is on
//! top of an empty root ([`attach_over_root`]), where the same holds.
//!
//! What the host mounts below the directory later does not appear in a clone (the kernel propagates nothing into
//! detached trees, and the clone is private besides): it would come without nosuid, nodev and the id map. What the
//! host unmounts stays in the clone.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Pid, chdir, chroot, fchdir, mkdtemp, pivot_root};

use crate::sys;

/// How [`clone_share`] clones. Set-id bits, device nodes and programs never work on a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareAttrs {
    /// No writing through the clone.
    pub read_only: bool,
    /// Also clone what is mounted below the directory. In a mount namespace that came with a user namespace,
    /// a directory with inherited mounts below can be cloned only this way (EINVAL otherwise).
    pub recursive: bool,
}

impl Default for ShareAttrs {
    fn default() -> Self {
        Self { read_only: false, recursive: true }
    }
}

/// Why the file view could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// open_tree(OPEN_TREE_CLONE) failed.
    #[error(
        "cannot clone the mount of {what}: {errno}. This needs Linux 5.2, CAP_SYS_ADMIN in the user namespace \
         that owns the caller's mount namespace, and a directory of that mount namespace"
    )]
    Clone {
        /// What was to be cloned.
        what: String,
        /// The kernel's reason.
        errno: Errno,
    },
    /// mount_setattr failed for flags or propagation.
    #[error("cannot set nosuid, nodev, noexec and propagation on the clone: {errno} (this needs Linux 5.12)")]
    Attributes {
        /// The kernel's reason.
        errno: Errno,
    },
    /// Some mount of the tree cannot have an id map.
    #[error(
        "cannot map ids on the clone: {errno}. EINVAL means that a file system in it has no idmapped mounts \
         (such as overlayfs and NFS), EPERM that a mount in it is idmapped already or belongs to another user \
         namespace; run the process with unmapped ids instead"
    )]
    IdmapUnsupported {
        /// EINVAL or EPERM.
        errno: Errno,
    },
    /// mount_setattr(MOUNT_ATTR_IDMAP) failed for another reason.
    #[error("cannot map ids on the clone: {errno}")]
    Idmap {
        /// The kernel's reason.
        errno: Errno,
    },
    /// The directory of descriptors is not in procfs.
    #[error("{path} is not on a proc file system: mount one on /proc")]
    NotProc {
        /// The directory.
        path: String,
    },
    /// The process can't enter its own mount namespace.
    #[error(
        "cannot enter its own mount namespace: {errno}. ENOENT means that no proc file system is mounted on /proc"
    )]
    Namespace {
        /// The kernel's reason.
        errno: Errno,
    },
    /// The mounts could not be made private.
    #[error("cannot make all mounts private: {errno}. Is this a mount namespace of the process's own?")]
    Private {
        /// The kernel's reason.
        errno: Errno,
    },
    /// One step of making the empty file system failed.
    #[error("cannot make the empty file system for the new root ({step}): {errno}")]
    EmptyFs {
        /// The system call.
        step: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// One step of the change of root failed.
    #[error("cannot change to the empty root ({step}): {errno}")]
    Root {
        /// The system call.
        step: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// No directory in which an empty one could be made.
    #[error("cannot make an empty directory to change root to in any of {tried}: {errno}")]
    EmptyDirectory {
        /// The parents that were tried.
        tried: String,
        /// The last reason.
        errno: Errno,
    },
    /// The new root could not be examined.
    #[error("cannot examine the new root: {0}")]
    Examine(io::Error),
    /// All calls succeeded, and yet the new root is not as it should be.
    #[error("the new root is not {0}")]
    RootCheck(&'static str),
}

/// Clones the mount of `dir` (a directory or any other file), with or without what is mounted below. With
/// `idmap`, a user namespace, owner ids on the file system are those *inside* that namespace.
///
/// An ordinary user has no CAP_SYS_ADMIN over the host's mounts, but a process in user and mount namespaces of
/// its own does, over copies of the host's mounts: it inherits a working directory inside the share, opens `.`,
/// and clones that, without `idmap`.
///
/// # Errors
///
/// [`MountError::Clone`], [`MountError::Attributes`], [`MountError::Idmap`], and
/// [`MountError::IdmapUnsupported`] when some mount of the tree cannot be idmapped. The original is unchanged.
pub fn clone_share(
    dir: BorrowedFd<'_>,
    attrs: ShareAttrs,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, MountError> {
    let recursive = if attrs.recursive { libc::AT_RECURSIVE } else { 0 };
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32 | recursive as u32;
    let tree = sys::open_tree(dir, c"", flags)
        .map_err(|errno| MountError::Clone { what: format!("file descriptor {}", dir.as_raw_fd()), errno })?;
    let mut attributes = attributes();
    attributes.attr_set = FLAGS | if attrs.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    attributes.propagation = libc::MS_PRIVATE;
    sys::mount_setattr(tree.as_fd(), recursive, &attributes)
        .map_err(|errno| MountError::Attributes { errno })?;
    if let Some(namespace) = idmap {
        set_idmap(tree.as_fd(), recursive, namespace)?;
    }
    Ok(tree)
}

/// Every clone has these.
const FLAGS: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

fn attributes() -> libc::mount_attr {
    libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 }
}

fn set_idmap(tree: BorrowedFd<'_>, recursive: i32, namespace: BorrowedFd<'_>) -> Result<(), MountError> {
    let mut attributes = attributes();
    attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
    attributes.userns_fd = namespace.as_raw_fd() as u64;
    sys::mount_setattr(tree, recursive, &attributes).map_err(|errno| match errno {
        Errno::EINVAL | Errno::EPERM => MountError::IdmapUnsupported { errno },
        errno => MountError::Idmap { errno },
    })
}

/// A detached clone of `/proc/PID/fd`, through which that process turns its `O_PATH` descriptors into open files
/// (`openat(clone, "17", O_RDWR)`) without seeing a proc file system.
///
/// # Errors
///
/// [`MountError::NotProc`], [`MountError::Clone`], [`MountError::Attributes`].
pub(crate) fn clone_fd_directory(pid: Pid) -> Result<OwnedFd, MountError> {
    clone_proc_directory(format!("/proc/{pid}/fd"))
}

/// The same for the calling process: for one in mount and user namespaces of its own whose parent may not clone
/// mounts. Call it before [`enter_empty_root`].
///
/// # Errors
///
/// [`MountError::NotProc`], [`MountError::Clone`], [`MountError::Attributes`].
pub fn clone_own_fd_directory() -> Result<OwnedFd, MountError> {
    clone_proc_directory("/proc/self/fd".to_owned())
}

fn clone_proc_directory(path: String) -> Result<OwnedFd, MountError> {
    let directory = open(path.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| MountError::Clone { what: path.clone(), errno })?;
    match fstatfs(&directory) {
        Ok(found) if found.filesystem_type() == PROC_SUPER_MAGIC => {}
        Ok(_) | Err(_) => return Err(MountError::NotProc { path }),
    }
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    let tree = sys::open_tree(directory.as_fd(), c"", flags)
        .map_err(|errno| MountError::Clone { what: path, errno })?;
    let mut attributes = attributes();
    attributes.attr_set = FLAGS;
    attributes.propagation = libc::MS_PRIVATE;
    sys::mount_setattr(tree.as_fd(), 0, &attributes).map_err(|errno| MountError::Attributes { errno })?;
    Ok(tree)
}

/// Makes the root of its own mount namespace the root and working directory of a process that [`crate::process::Spawn`]
/// started with another one. It must have one thread.
///
/// # Errors
///
/// [`MountError::Namespace`].
pub fn enter_own_namespace() -> Result<(), MountError> {
    let step = |errno| MountError::Namespace { errno };
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let own = open("/proc/self/ns/mnt", flags, Mode::empty()).map_err(step)?;
    setns(own, CloneFlags::CLONE_NEWNS).map_err(step)
}

/// Replaces the root of a process that has a mount namespace of its own by an empty, read-only file system, and
/// detaches everything that was mounted. Open descriptors stay as they are. The process must have one thread.
///
/// # Errors
///
/// [`MountError`] by step; also when the new root turns out not to be empty or read-only. The process must not
/// go on then: part of the host's tree may still be there.
pub fn enter_empty_root() -> Result<(), MountError> {
    enter_own_namespace()?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|errno| MountError::Private { errno })?;
    let root = empty_file_system()?;
    let step = |step| move |errno| MountError::Root { step, errno };
    // On top of "/", which every tree has. Paths don't lead there, but the descriptor does.
    sys::move_mount(root.as_fd(), c"/").map_err(step("move_mount"))?;
    fchdir(&root).map_err(step("fchdir"))?;
    // With both paths the same, the old root ends up on top of the new one, where umount finds it.
    pivot_root(".", ".").map_err(step("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("umount"))?;
    chdir("/").map_err(step("chdir"))?;
    check_empty()?;
    let wanted = FsFlags::ST_RDONLY | FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOEXEC;
    let found = statvfs("/").map_err(|errno| MountError::Examine(errno.into()))?.flags();
    if found.contains(wanted) {
        Ok(())
    } else {
        Err(MountError::RootCheck("read-only, nosuid, nodev, noexec"))
    }
}

/// Attaches a clone on top of the root that [`enter_empty_root`] left. No path leads there (they start below it), and
/// `..` at its root still leads nowhere; but what is mounted in the clone now counts as mounted in this namespace. So
/// the kernel refuses with EBUSY to remove or rename a directory that something is mounted on. Elsewhere it would obey,
/// and unmount that thing in *every* mount namespace, the host's as well.
///
/// The clone of a single file stays detached: there is nothing to remove in it.
///
/// # Errors
///
/// [`MountError::Root`].
pub fn attach_over_root(clone: BorrowedFd<'_>) -> Result<(), MountError> {
    let step = |step| move |errno| MountError::Root { step, errno };
    let kind = nix::sys::stat::fstat(clone).map_err(step("fstat of the share"))?.st_mode & libc::S_IFMT;
    if kind != libc::S_IFDIR {
        return Ok(());
    }
    sys::move_mount(clone, c"/").map_err(step("move_mount of the share"))
}

/// A detached tmpfs, read-only from the start.
fn empty_file_system() -> Result<OwnedFd, MountError> {
    let step = |step| move |errno| MountError::EmptyFs { step, errno };
    let context = sys::fsopen(c"tmpfs").map_err(step("fsopen tmpfs"))?;
    let set = |command, key: Option<&CStr>, value: Option<&CStr>| {
        sys::fsconfig(context.as_fd(), command, key, value).map_err(step("fsconfig"))
    };
    set(libc::FSCONFIG_SET_STRING, Some(c"mode"), Some(c"0555"))?;
    set(libc::FSCONFIG_SET_STRING, Some(c"size"), Some(c"4096"))?;
    set(libc::FSCONFIG_SET_STRING, Some(c"nr_inodes"), Some(c"1"))?;
    set(libc::FSCONFIG_SET_FLAG, Some(c"ro"), None)?;
    set(libc::FSCONFIG_CMD_CREATE, None, None)?;
    sys::fsmount(context.as_fd(), FLAGS | libc::MOUNT_ATTR_RDONLY).map_err(step("fsmount"))
}

/// Where [`enter_empty_root_by_chroot`] looks for a place to make its directory.
const WRITABLE_DIRECTORIES: [&str; 4] = ["/run", "/tmp", "/var/tmp", "/dev/shm"];

/// Changes the root of a process to an empty directory that has already been removed, so that nobody finds it or
/// can create anything in it. Needs CAP_SYS_CHROOT and no mount.
///
/// This holds only while the process lacks CAP_SYS_CHROOT afterwards and has no descriptor of a directory that
/// leads to the host: through one, `..` goes up to the host's root. Detached clones don't lead anywhere.
///
/// # Errors
///
/// [`MountError`] by step; also when the new root turns out not to be empty.
pub fn enter_empty_root_by_chroot() -> Result<(), MountError> {
    let directory = removed_directory()?;
    let step = |step| move |errno| MountError::Root { step, errno };
    fchdir(&directory).map_err(step("fchdir"))?;
    chroot(".").map_err(step("chroot"))?;
    chdir("/").map_err(step("chdir"))?;
    check_empty()
}

fn removed_directory() -> Result<OwnedFd, MountError> {
    let mut last = Errno::ENOENT;
    for parent in WRITABLE_DIRECTORIES {
        let made = mkdtemp(format!("{parent}/empty-root-XXXXXX").as_str()).and_then(|path| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let directory = open(&path, flags, Mode::empty());
            fs::remove_dir(&path).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
            directory
        });
        match made {
            Ok(directory) => return Ok(directory),
            Err(errno) => last = errno,
        }
    }
    Err(MountError::EmptyDirectory { tried: WRITABLE_DIRECTORIES.join(", "), errno: last })
}

/// The root and the working directory are the same, empty directory.
fn check_empty() -> Result<(), MountError> {
    let entries = fs::read_dir("/").map_err(MountError::Examine)?;
    if entries.count() != 0 {
        return Err(MountError::RootCheck("empty"));
    }
    let same = nix::sys::stat::fstatat(AT_FDCWD, "..", nix::fcntl::AtFlags::empty())
        .and_then(|parent| Ok((parent, nix::sys::stat::stat("/")?)))
        .map_err(|errno| MountError::Examine(errno.into()))?;
    if (same.0.st_dev, same.0.st_ino) == (same.1.st_dev, same.1.st_ino) {
        Ok(())
    } else {
        Err(MountError::RootCheck("the end of the tree: \"..\" leads out of it"))
    }
}
