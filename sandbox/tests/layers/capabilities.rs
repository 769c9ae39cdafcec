use std::process::Command;

use nix::errno::Errno;
use nix::unistd::{Uid, chown, chroot, geteuid};
use sandbox::capabilities::{
    Capability, CapabilityError, CapabilitySet, Limited, forbid_new_privileges, limit_to,
};

use crate::harness::{
    Case, Role, cases, everything, expect_role, private_tmpfs, roles, shifted, status_mask,
};

pub const CASES: &[Case] = cases![
    Root: the_kept_work_and_others_do_not, nothing_kept_is_nothing_left, programs_get_none,
        it_cannot_be_undone, what_is_not_had_is_not_kept, conflicting_securebits_are_named,
        the_root_of_a_namespace_is_limited_too, no_new_privileges;
    Ordinary: an_ordinary_user_has_none, no_new_privileges;
];

pub const ROLES: &[Role] = roles![limits_itself];

const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

fn sets() -> [u64; 5] {
    SETS.map(|set| status_mask("self", set))
}

fn keep(members: &[Capability]) -> CapabilitySet {
    members.iter().copied().collect()
}

fn the_kept_work_and_others_do_not() {
    let path = private_tmpfs().join("file");
    std::fs::write(&path, "").unwrap();
    let set = keep(&[Capability::CAP_CHOWN]);
    chown(&path, Some(Uid::from_raw(5)), None).unwrap();
    assert_eq!(limit_to(set).unwrap(), Limited { held: set, locked: true });
    assert_eq!(sets(), [0, set.bits(), set.bits(), set.bits(), 0]);
    chown(&path, Some(Uid::from_raw(6)), None).unwrap();
    assert_eq!(chroot("/"), Err(Errno::EPERM));
    assert_eq!(nix::unistd::sethostname("no"), Err(Errno::EPERM));
}

fn nothing_kept_is_nothing_left() {
    limit_to(CapabilitySet::EMPTY).unwrap();
    assert_eq!(sets(), [0; 5]);
}

/// Even of user 0, for whom exec would otherwise give the whole bounding set.
fn programs_get_none() {
    limit_to(keep(&[Capability::CAP_CHOWN, Capability::CAP_SYS_ADMIN])).unwrap();
    let output = Command::new("/bin/cat").arg("/proc/self/status").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("Uid:"), "0\t0\t0\t0");
}

fn it_cannot_be_undone() {
    limit_to(keep(&[Capability::CAP_SETPCAP])).unwrap();
    // SAFETY: these commands take integers only.
    let securebits = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 0) };
    assert_eq!(Errno::result(securebits), Err(Errno::EPERM));
    assert!(caps::raise(None, caps::CapSet::Permitted, Capability::CAP_CHOWN).is_err());
    assert!(caps::raise(None, caps::CapSet::Inheritable, Capability::CAP_CHOWN).is_err());
    caps::raise(None, caps::CapSet::Inheritable, Capability::CAP_SETPCAP).unwrap();
    assert!(caps::raise(None, caps::CapSet::Ambient, Capability::CAP_SETPCAP).is_err());
}

fn what_is_not_had_is_not_kept() {
    let (one, two) =
        (keep(&[Capability::CAP_SETPCAP]), keep(&[Capability::CAP_SETPCAP, Capability::CAP_CHOWN]));
    limit_to(one).unwrap();
    assert_eq!(limit_to(two).unwrap(), Limited { held: one, locked: true });
    assert_eq!(sets(), [0, one.bits(), one.bits(), one.bits(), 0]);
}

fn conflicting_securebits_are_named() {
    // SAFETY: this command takes an integer only.
    let result = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NOROOT_LOCKED as libc::c_ulong) };
    assert_eq!(result, 0);
    let error = limit_to(CapabilitySet::EMPTY).unwrap_err();
    assert!(matches!(error, CapabilityError::Securebits { errno: Errno::EPERM, .. }), "{error}");
}

fn the_root_of_a_namespace_is_limited_too() {
    expect_role("limits_itself", everything(), Some(shifted()), &[]);
}

fn limits_itself() {
    nix::unistd::sethostname("inside").unwrap();
    let set = keep(&[Capability::CAP_CHOWN, Capability::CAP_SETUID, Capability::CAP_SETGID]);
    assert_eq!(limit_to(set).unwrap(), Limited { held: set, locked: true });
    assert_eq!(sets(), [0, set.bits(), set.bits(), set.bits(), 0]);
    assert_eq!(nix::unistd::sethostname("again"), Err(Errno::EPERM));
}

fn no_new_privileges() {
    assert_eq!(status_mask("self", "NoNewPrivs"), 0);
    forbid_new_privileges().unwrap();
    assert_eq!(status_mask("self", "NoNewPrivs"), 1);
    // A set-user-id program of root's runs as whoever starts it.
    if !geteuid().is_root() {
        let output = Command::new("/usr/bin/newuidmap").args(["1", "0", "0", "1"]).output().unwrap();
        assert!(!output.status.success());
    }
}

fn an_ordinary_user_has_none() {
    let bounding = status_mask("self", "CapBnd");
    let limited = limit_to(keep(&[Capability::CAP_CHOWN])).unwrap();
    assert_eq!(limited, Limited { held: CapabilitySet::EMPTY, locked: false });
    assert_eq!(sets(), [0, 0, 0, bounding, 0]);
}
