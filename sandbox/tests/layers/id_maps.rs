use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Pid, User, getegid, geteuid, getgroups};
use sandbox::id_maps::{IdMapError, IdMaps};
use sandbox::namespaces::Namespaces;
use sandbox::process::SpawnError;

use crate::harness::{
    Case, NOBODY, RENDEZVOUS_FD, Rendezvous, Role, assert_no_children, cases, everything, expect_role,
    private_tmpfs, roles, shifted, start_role, status_field, tmpfs,
};

pub const CASES: &[Case] = cases![
    Root: shifted_ids_are_root_inside_only, identity_is_root_inside_only, groups_are_given_up,
        subordinate_ids_come_from_the_helpers, a_user_without_subordinate_ids_is_told;
    Ordinary: the_own_id_works, other_ids_need_the_helpers, identity_needs_privilege;
];

pub const ROLES: &[Role] =
    roles![has_no_power_on_the_host, has_no_groups, has_fixed_groups, starts_with_subordinate_ids];

/// The ids of a waiting child in our eyes: real, effective, saved and file-system id.
fn outside(maps: IdMaps) -> (String, String) {
    let (mut rendezvous, theirs) = Rendezvous::pair();
    let child = start_role("idle", everything(), Some(maps), &[(theirs.as_fd(), RENDEZVOUS_FD)]).unwrap();
    rendezvous.wait();
    let pid = child.pid().to_string();
    (status_field(&pid, "Uid"), status_field(&pid, "Gid"))
}

fn four(id: u32) -> String {
    [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join("\t")
}

fn shifted_ids_are_root_inside_only() {
    assert_eq!(outside(shifted()), (four(2_147_483_648), four(2_147_483_648)));
    let namespaces = everything().difference(Namespaces::UTS | Namespaces::PID);
    expect_role("has_no_power_on_the_host", namespaces, Some(shifted()), &[]);
}

fn identity_is_root_inside_only() {
    let maps = IdMaps::identity().unwrap();
    assert_eq!(outside(maps.clone()), (four(0), four(0)));
    let namespaces = everything().difference(Namespaces::UTS | Namespaces::PID);
    expect_role("has_no_power_on_the_host", namespaces, Some(maps), &[]);
}

/// In user and mount namespaces of its own, but the host's UTS and pid namespaces.
fn has_no_power_on_the_host() {
    assert_eq!((geteuid().as_raw(), getegid().as_raw()), (0, 0));
    assert_eq!(nix::unistd::sethostname("no"), Err(Errno::EPERM));
    // Before privilege is asked for, a directory whose owner has no id here refuses everything (EOVERFLOW).
    let device = mknod("/dev/shm/no-such-device", SFlag::S_IFCHR, Mode::empty(), makedev(1, 3));
    assert!(matches!(device, Err(Errno::EPERM | Errno::EOVERFLOW)), "{device:?}");
    // Files of the host's root, and its processes, are as this process's own with unmapped ids only. What keeps
    // these from it is that it cannot name them: the empty root and the pid namespace.
    let unmapped = fs::read_to_string("/proc/self/uid_map").unwrap().contains(" 4294967295");
    assert_eq!(OpenOptions::new().write(true).open("/proc/sys/kernel/hostname").is_ok(), unmapped);
    // Number 2 is a thread of the kernel.
    assert_eq!(nix::sys::signal::kill(Pid::from_raw(2), None).is_ok(), unmapped);
}

fn groups_are_given_up() {
    nix::unistd::setgroups(&[nix::unistd::Gid::from_raw(4), nix::unistd::Gid::from_raw(24)]).unwrap();
    expect_role("has_no_groups", everything(), Some(shifted()), &[]);
    let mut maps = shifted();
    maps.setgroups_deny = true;
    expect_role("has_fixed_groups", everything(), Some(maps), &[]);
}

fn has_no_groups() {
    assert_eq!(getgroups().unwrap(), []);
    nix::unistd::setgroups(&[nix::unistd::Gid::from_raw(4)]).unwrap();
}

fn has_fixed_groups() {
    assert_eq!(nix::unistd::setgroups(&[]), Err(Errno::EPERM));
}

fn the_own_id_works() {
    assert_eq!(outside(IdMaps::own()), (four(NOBODY), four(NOBODY)));
    expect_role("has_fixed_groups", everything(), Some(IdMaps::own()), &[]);
}

fn other_ids_need_the_helpers() {
    let error = start_role("idle", everything(), Some(shifted()), &[]).unwrap_err();
    match &error {
        SpawnError::IdMaps(IdMapError::HelperRefused { path, message, .. }) => {
            assert_eq!(path, Path::new("/usr/bin/newuidmap"));
            assert!(message.contains("uid range"), "{message}");
        }
        _ => panic!("{error} (this case needs the package uidmap)"),
    }
    assert_no_children();
}

fn identity_needs_privilege() {
    let maps = IdMaps::identity().unwrap();
    let error = start_role("idle", everything(), Some(maps), &[]).unwrap_err();
    assert!(matches!(error, SpawnError::IdMaps(IdMapError::HelperRefused { .. })), "{error}");
    assert_no_children();
}

/// An /etc of this case's own, in which the ordinary user has subordinate ids.
fn etc_with_subordinate_ids(lines: &str) {
    private_tmpfs();
    tmpfs(Path::new("/mnt"));
    for name in ["passwd", "group", "nsswitch.conf", "login.defs", "ld.so.cache"] {
        fs::copy(Path::new("/etc").join(name), Path::new("/mnt").join(name)).unwrap();
    }
    fs::write("/mnt/subuid", lines).unwrap();
    fs::write("/mnt/subgid", lines).unwrap();
    let flags = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some("/mnt"), "/etc", None::<&str>, flags, None::<&str>).unwrap();
}

fn subordinate_ids_come_from_the_helpers() {
    etc_with_subordinate_ids("other:1:1\nnobody:200000:1000\nnobody:300000:5\n");
    let status = Command::new("/proc/self/exe")
        .args(["--role", "starts_with_subordinate_ids"])
        .uid(NOBODY)
        .gid(NOBODY)
        .status()
        .unwrap();
    assert!(status.success());
}

fn starts_with_subordinate_ids() {
    let user = User::from_uid(geteuid()).unwrap().unwrap();
    let maps = IdMaps::from_subid_files(&user).unwrap();
    assert_eq!(outside(maps.clone()), (four(NOBODY), four(NOBODY)));
    expect_role("has_no_groups", everything(), Some(maps.clone()), &[]);
    let (mut rendezvous, theirs) = Rendezvous::pair();
    let child = start_role("idle", everything(), Some(maps), &[(theirs.as_fd(), RENDEZVOUS_FD)]).unwrap();
    rendezvous.wait();
    let map = fs::read_to_string(format!("/proc/{}/uid_map", child.pid())).unwrap();
    let map: Vec<Vec<u32>> =
        map.lines().map(|line| line.split_whitespace().map(|n| n.parse().unwrap()).collect()).collect();
    assert_eq!(map, [[0, NOBODY, 1], [1, 200_000, 1000], [1001, 300_000, 5]]);
}

fn a_user_without_subordinate_ids_is_told() {
    etc_with_subordinate_ids("other:1:1\n");
    let user = User::from_name("nobody").unwrap().unwrap();
    let error = IdMaps::from_subid_files(&user).unwrap_err();
    assert!(error.to_string().starts_with("nobody has no line in /etc/subuid"), "{error}");
}
