use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use nix::errno::Errno;
use sandbox::capabilities::{Capability, CapabilitySet, limit_to};
use sandbox::credentials::{Baseline, CredentialsError, ThreadCredentials};
use sandbox::id_maps::IdMaps;
use sandbox::mounts::{ShareAttrs, clone_share};
use sandbox::namespaces::Namespaces;
use sandbox::process::Exit;

use crate::harness::{
    Case, FIRST_FD, Role, cases, errno, everything, expect_role, inherited, private_tmpfs, roles, shifted,
    start_role, status_field, status_mask,
};

pub const CASES: &[Case] = cases![
    Root: permissions_are_the_users, created_files_are_the_users, the_effective_set_is_known,
        only_changes_cost_system_calls, other_threads_are_not_affected, a_thread_must_be_as_the_baseline,
        a_capability_goes_and_comes_back, a_capability_that_is_not_permitted_is_refused,
        ids_outside_the_map_are_refused, without_capabilities_nobody_else, a_failed_way_back_aborts,
        the_setuid_fixup_is_required, they_work_in_a_shifted_namespace;
    Ordinary: nobody_else_without_privilege, the_own_id_is_all_of_an_own_namespace;
];

pub const ROLES: &[Role] = roles![has_few_ids, has_one_id, cannot_go_back, acts_in_a_shifted_namespace];

fn credentials() -> ThreadCredentials {
    ThreadCredentials::new(&Baseline::capture().unwrap()).unwrap()
}

fn file(path: &Path, owner: (u32, u32), mode: u32) {
    fs::write(path, "content").unwrap();
    chown(path, Some(owner.0), Some(owner.1)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn permissions_are_the_users() {
    let root = private_tmpfs();
    fs::set_permissions(root, Permissions::from_mode(0o777)).unwrap();
    let [own, group, extra, others] = ["own", "group", "extra", "others"].map(|name| root.join(name));
    file(&own, (1000, 0), 0o400);
    file(&group, (0, 2000), 0o040);
    file(&extra, (0, 3000), 0o040);
    file(&others, (4000, 4000), 0o600);
    let mut credentials = credentials();
    let readable = || [&own, &group, &extra, &others].map(|path| File::open(path).is_ok());
    assert_eq!(readable(), [true; 4]);
    for (uid, gid, groups, expected) in [
        (1000, 1000, &[][..], [true, false, false, false]),
        (1000, 2000, &[], [true, true, false, false]),
        (1000, 2000, &[3000], [true, true, true, false]),
        (1001, 1001, &[2000, 3000], [false, true, true, false]),
        (4000, 4000, &[], [false, false, false, true]),
        (0, 0, &[], [true; 4]),
        (0, 2000, &[3000], [true; 4]),
    ] {
        credentials.become_user(uid, gid, groups).unwrap();
        assert_eq!(readable(), expected, "{uid} {gid} {groups:?}");
        assert_eq!(credentials.current(), (uid, gid));
    }
    credentials.become_user(1000, 1000, &[]).unwrap();
    assert_eq!(errno(File::open(&others)), Errno::EACCES);
    credentials.become_root();
    assert_eq!(readable(), [true; 4]);
    credentials.become_user(1000, 1000, &[]).unwrap();
    drop(credentials);
    assert_eq!(readable(), [true; 4]);
}

fn created_files_are_the_users() {
    let root = private_tmpfs();
    fs::set_permissions(root, Permissions::from_mode(0o777)).unwrap();
    let mut credentials = credentials();
    for (uid, gid) in [(1000, 2000), (0, 0), (5, 0), (2_147_483_646, 2_147_483_646)] {
        credentials.become_user(uid, gid, &[]).unwrap();
        let path = root.join(format!("{uid}"));
        File::create(&path).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (uid, gid));
    }
}

fn the_effective_set_is_known() {
    // A set that isn't full shows what the kernel raises on the way back to root.
    let kept =
        [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_CHOWN, Capability::CAP_SETFCAP];
    limit_to(kept.into_iter().collect()).unwrap();
    let mut credentials = credentials();
    let check = |credentials: &ThreadCredentials| {
        assert_eq!(credentials.effective().bits(), status_mask("self", "CapEff"));
    };
    check(&credentials);
    credentials.become_user(1000, 1000, &[]).unwrap();
    check(&credentials);
    assert!(!credentials.effective().contains(Capability::CAP_CHOWN));
    assert!(credentials.effective().contains(Capability::CAP_SETFCAP));
    credentials.become_user(1001, 0, &[7]).unwrap();
    check(&credentials);
    credentials.become_root();
    check(&credentials);
    assert!(credentials.effective().contains(Capability::CAP_CHOWN));
}

/// What the thread has is changed behind its credentials' back; that this stays shows that no call was made.
fn only_changes_cost_system_calls() {
    let mut credentials = credentials();
    let ids = || (status_field("thread-self", "Uid"), status_field("thread-self", "Groups"));
    credentials.become_user(1000, 1000, &[5]).unwrap();
    let before = ids();
    // SAFETY: these calls take integers, and one pointer that a count of 0 makes unused.
    unsafe {
        libc::syscall(libc::SYS_setfsuid, 77);
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>());
    }
    let sneaked = ids();
    assert_ne!(sneaked, before);
    credentials.become_user(1000, 1000, &[5]).unwrap();
    assert_eq!(ids(), sneaked);
    credentials.become_user(1001, 1000, &[5]).unwrap();
    assert_eq!(ids().1, sneaked.1, "only the uid was set");
    assert!(ids().0.ends_with("1001"));
}

fn other_threads_are_not_affected() {
    let mut credentials = credentials();
    credentials.become_user(1000, 1000, &[5]).unwrap();
    let field = |field: &'static str| std::thread::spawn(move || status_field("thread-self", field));
    // A new thread starts with its creator's; the main thread is another one.
    assert_eq!(field("Uid").join().unwrap(), "0\t0\t0\t1000");
    credentials.become_root();
    std::thread::spawn(|| {
        let mut credentials = self::credentials();
        credentials.become_user(1000, 1000, &[5]).unwrap();
        assert_eq!(status_field("thread-self", "Uid"), "0\t0\t0\t1000");
        assert_eq!(status_field("thread-self", "Groups"), "5");
        assert_eq!(status_field("self", "Uid"), "0\t0\t0\t0");
        assert_eq!(status_field("self", "Groups"), "");
    })
    .join()
    .unwrap();
}

fn a_thread_must_be_as_the_baseline() {
    let baseline = Baseline::capture().unwrap();
    let mut credentials = ThreadCredentials::new(&baseline).unwrap();
    credentials.become_user(1000, 1001, &[]).unwrap();
    assert_eq!(
        ThreadCredentials::new(&baseline).unwrap_err(),
        CredentialsError::OtherThread { uid: 1000, gid: 1001 }
    );
}

/// Writing to a set-id file as root keeps the bits exactly when the thread has CAP_FSETID.
fn a_capability_goes_and_comes_back() {
    let path = private_tmpfs().join("set-id");
    let mode_after_write = || {
        file(&path, (1000, 1000), 0o6777);
        OpenOptions::new().write(true).open(&path).unwrap().write_all(b"x").unwrap();
        fs::metadata(&path).unwrap().mode() & 0o7777
    };
    let mut credentials = credentials();
    assert_eq!(mode_after_write(), 0o6777);
    let guard = credentials.without_capability(Capability::CAP_FSETID).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    (&file).write_all(b"x").unwrap();
    drop(guard);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
    assert_eq!(mode_after_write(), 0o6777);

    credentials.become_user(1000, 1000, &[]).unwrap();
    let effective = status_mask("self", "CapEff");
    drop(credentials.without_capability(Capability::CAP_FSETID).unwrap());
    assert_eq!(status_mask("self", "CapEff"), effective);
    let guard = credentials.with_capability(Capability::CAP_FSETID).unwrap();
    assert_eq!(status_mask("self", "CapEff"), effective | 1 << 4);
    drop(guard);
    assert_eq!(status_mask("self", "CapEff"), effective);
}

fn a_capability_that_is_not_permitted_is_refused() {
    limit_to([Capability::CAP_SETUID].into_iter().collect()).unwrap();
    let mut credentials = credentials();
    let error = credentials.with_capability(Capability::CAP_FSETID).unwrap_err();
    assert!(matches!(error, CredentialsError::Capabilities { errno: Errno::EPERM, .. }), "{error}");
    assert!(error.to_string().contains("CAP_FSETID"), "{error}");
}

fn ids_outside_the_map_are_refused() {
    expect_role("has_few_ids", everything(), Some(IdMaps::shifted(100_000, 10)), &[]);
}

fn has_few_ids() {
    let mut credentials = credentials();
    let attempts = [
        (10, 0, vec![], CredentialsError::Uid { uid: 10 }),
        (u32::MAX, 0, vec![], CredentialsError::Uid { uid: u32::MAX }),
        (1, 10, vec![2], CredentialsError::Gid { gid: 10 }),
        (1, u32::MAX, vec![], CredentialsError::Gid { gid: u32::MAX }),
        (1, 1, vec![2, 10], CredentialsError::Groups { count: 2, errno: Errno::EINVAL }),
        (1, 1, vec![0; 65_537], CredentialsError::Groups { count: 65_537, errno: Errno::EINVAL }),
    ];
    for (uid, gid, groups, expected) in attempts {
        credentials.become_user(9, 9, &[9]).unwrap();
        assert_eq!(credentials.become_user(uid, gid, &groups), Err(expected));
        assert_eq!(credentials.current(), (0, 0));
        assert_eq!(status_field("self", "Uid"), "0\t0\t0\t0");
        assert_eq!(status_field("self", "Gid"), "0\t0\t0\t0");
        assert_eq!(status_field("self", "Groups"), "");
    }
}

fn without_capabilities_nobody_else() {
    limit_to(CapabilitySet::EMPTY).unwrap();
    nobody_else();
}

fn nobody_else_without_privilege() {
    nobody_else();
}

fn nobody_else() {
    let baseline = Baseline::capture().unwrap();
    assert!(!baseline.can_become_others());
    assert!(baseline.groups_fixed());
    let mut credentials = ThreadCredentials::new(&baseline).unwrap();
    let (uid, gid) = (baseline.uid(), baseline.gid());
    credentials.become_user(uid, gid, &[]).unwrap();
    assert_eq!(credentials.become_user(1000, gid, &[]), Err(CredentialsError::Uid { uid: 1000 }));
    assert_eq!(credentials.become_user(uid, 1000, &[]), Err(CredentialsError::Gid { gid: 1000 }));
    assert_eq!(credentials.current(), (uid, gid));
}

fn the_own_id_is_all_of_an_own_namespace() {
    expect_role("has_one_id", everything(), Some(IdMaps::own()), &[]);
}

fn has_one_id() {
    let baseline = Baseline::capture().unwrap();
    assert!(baseline.can_become_others() && baseline.groups_fixed());
    let mut credentials = ThreadCredentials::new(&baseline).unwrap();
    credentials.become_user(0, 0, &[]).unwrap();
    assert_eq!(credentials.become_user(1, 0, &[]), Err(CredentialsError::Uid { uid: 1 }));
}

fn a_failed_way_back_aborts() {
    // Process 1 of a pid namespace would ignore the signal.
    let namespaces = everything().difference(Namespaces::PID);
    let mut child = start_role("cannot_go_back", namespaces, Some(shifted()), &[]).unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Signal { signal: libc::SIGABRT, core_dumped: false });
}

fn cannot_go_back() {
    sandbox::rlimits::forbid_core_dumps().unwrap();
    let mut credentials = credentials();
    credentials.become_user(1000, 1000, &[5]).unwrap();
    // As an attacker in another function of the thread might.
    limit_to(CapabilitySet::EMPTY).unwrap();
    credentials.become_root();
}

fn the_setuid_fixup_is_required() {
    // SAFETY: this command takes an integer.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP as libc::c_ulong) };
    assert_eq!(result, 0);
    assert_eq!(Baseline::capture().unwrap_err(), CredentialsError::SetuidFixup);
}

fn they_work_in_a_shifted_namespace() {
    let root = private_tmpfs();
    fs::set_permissions(root, Permissions::from_mode(0o777)).unwrap();
    file(&root.join("secret"), (1001, 1001), 0o600);
    let (mut rendezvous, theirs) = crate::harness::Rendezvous::pair();
    let namespace = {
        let fds = [(theirs.as_fd(), crate::harness::RENDEZVOUS_FD)];
        let child = start_role("idle", everything(), Some(shifted()), &fds).unwrap();
        rendezvous.wait();
        child.user_namespace().unwrap()
    };
    let directory = File::open(root).unwrap();
    let share = clone_share(directory.as_fd(), ShareAttrs::default(), Some(namespace.as_fd())).unwrap();
    expect_role("acts_in_a_shifted_namespace", everything(), Some(shifted()), &[(share.as_fd(), FIRST_FD)]);
    let made = fs::metadata(root.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1000, 2000, 0o640));
}

/// The id map is of another namespace with the same ids, which is the same to the kernel.
fn acts_in_a_shifted_namespace() {
    let share = inherited(FIRST_FD);
    nix::unistd::fchdir(&share).unwrap();
    let mut credentials = credentials();
    fs::read("secret").unwrap();
    credentials.become_user(1000, 2000, &[5]).unwrap();
    assert_eq!(errno(fs::read("secret")), Errno::EACCES);
    OpenOptions::new().write(true).create_new(true).mode(0o640).open("made").unwrap();
    credentials.become_root();
    fs::read("secret").unwrap();
}
