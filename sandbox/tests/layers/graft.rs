use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use sandbox::graft::{GraftError, Namespaces, Place, open_below, place_of};
use sandbox::mountinfo;
use sandbox::mounts::{ShareAttrs, clone_share};

use crate::harness::{Case, cases, private_tmpfs, tmpfs};

pub const CASES: &[Case] = cases![
    Root: places_are_found_without_links, the_topmost_mount_is_found,
        a_copy_is_attached_in_the_other_namespace_only;
    Ordinary: entering_needs_privilege;
];

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

fn places_are_found_without_links() {
    let dir = private_tmpfs();
    fs::create_dir_all(dir.join("root/a/b")).unwrap();
    symlink("a", dir.join("root/inside")).unwrap();
    symlink("/", dir.join("root/outside")).unwrap();
    let root = open(&dir.join("root"), DIRECTORY, Mode::empty()).unwrap();
    open_below(root.as_fd(), c"a/b").unwrap();
    for (path, errno) in [
        (c"inside", Errno::ELOOP),
        (c"inside/b", Errno::ELOOP),
        (c"outside/etc", Errno::ELOOP),
        (c"..", Errno::EXDEV),
        (c"a/../../root", Errno::EXDEV),
        (c"/", Errno::EXDEV),
        (c"absent", Errno::ENOENT),
    ] {
        assert_eq!(open_below(root.as_fd(), path).map(drop), Err(errno), "{path:?}");
    }
}

fn the_topmost_mount_is_found() {
    let dir = private_tmpfs();
    let root = open(dir, DIRECTORY, Mode::empty()).unwrap();
    fs::create_dir(dir.join("a")).unwrap();
    let place = |path| place_of(open_below(root.as_fd(), path).unwrap().as_fd()).unwrap();
    let below = place(c"a");
    assert_eq!(below, Place { mount: place_of(root.as_fd()).unwrap().mount, is_root: false });
    tmpfs(&dir.join("a"));
    let lower = place(c"a");
    tmpfs(&dir.join("a"));
    let upper = place(c"a");
    assert!(lower.is_root && upper.is_root && lower.mount != upper.mount && lower.mount != below.mount);
    // The list has them by these ids, one on the other.
    let list = mountinfo::parse(&fs::read("/proc/self/mountinfo").unwrap());
    let found = list.iter().find(|mount| mount.id == upper.mount).unwrap();
    assert_eq!(found.parent, lower.mount);
}

fn a_copy_is_attached_in_the_other_namespace_only() {
    let dir = private_tmpfs();
    let path = |name: &str| dir.join(name);
    for name in ["place", "source"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("source/file"), "").unwrap();
    let other = File::open("/proc/self/ns/mnt").unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let namespaces = Namespaces::new(other.into()).unwrap();
    let sees = || path("place/file").exists();
    let other_sees = || namespaces.inside(sees).unwrap();

    let source = open(&path("source"), DIRECTORY, Mode::empty()).unwrap();
    let attrs = ShareAttrs { recursive: false, ..ShareAttrs::default() };
    let copy = clone_share(source.as_fd(), attrs, None).unwrap();
    let target = namespaces.inside(|| open(&path("place"), DIRECTORY, Mode::empty())).unwrap().unwrap();
    namespaces.attach(copy.as_fd(), target.as_fd()).unwrap().unwrap();
    assert!(other_sees() && !sees());

    let write = || namespaces.inside(|| fs::write(path("place/made"), "")).unwrap();
    write().unwrap();
    namespaces.set_read_only(copy.as_fd(), true).unwrap().unwrap();
    assert_eq!(write().unwrap_err().raw_os_error(), Some(libc::EROFS));
    namespaces.set_read_only(copy.as_fd(), false).unwrap().unwrap();
    write().unwrap();

    // Whatever its path is by then. That it is gone already is no error.
    fs::rename(path("place"), path("renamed")).unwrap();
    for _ in 0..2 {
        namespaces.detach(copy.as_fd()).unwrap().unwrap();
        assert!(!namespaces.inside(|| path("renamed/file").exists()).unwrap());
    }
}

fn entering_needs_privilege() {
    let own = File::open("/proc/self/ns/mnt").unwrap();
    assert!(matches!(Namespaces::new(own.into()), Err(GraftError::Return(Errno::EPERM))));
}
