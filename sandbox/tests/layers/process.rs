use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::prctl::get_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, raise, signal};
use nix::unistd::{getpid, getsid};
use sandbox::capabilities::{Capability, forbid_new_privileges, limit_to};
use sandbox::credentials::{Baseline, ThreadCredentials};
use sandbox::fds::set_inheritable;
use sandbox::id_maps::{IdMapEntry, IdMapError, IdMaps};
use sandbox::mounts::enter_empty_root;
use sandbox::namespaces::Namespaces;
use sandbox::process::{Exit, Spawn, SpawnError, Step};
use sandbox::rlimits::forbid_core_dumps;

use crate::harness::{
    Case, FIRST_FD, RENDEZVOUS_FD, Rendezvous, Role, TempDir, assert_no_children, cases, everything,
    expect_role, idle, inherited, open_fds, roles, shifted, start_role, status_mask,
};

pub const CASES: &[Case] = cases![
    Root: fds_get_their_numbers, arguments_and_environment_are_exact, the_end_is_reported, a_kill_is_reported,
        dropping_the_child_ends_it, signals_and_session_are_new, a_refused_exec_is_named,
        an_impossible_fd_is_named, bad_requests_are_refused, bad_id_maps_are_named,
        the_child_dies_with_its_parent, confinement_keeps_the_tie_to_the_parent,
        a_limited_parent_can_start_workers, restricted_namespaces_are_told_apart;
    Ordinary: fds_get_their_numbers, the_end_is_reported, dropping_the_child_ends_it, a_refused_exec_is_named,
        the_child_dies_with_its_parent;
];

pub const ROLES: &[Role] = roles![
    idle,
    sees_its_fds,
    sees_argv,
    exits_with_7,
    aborts,
    dies_by_a_real_time_signal,
    sees_default_signals,
    starts_idle_and_dies,
    waits_to_be_killed,
    confines_itself,
    has_all_capabilities
];

const NONE: Namespaces = Namespaces::empty();

fn fds_get_their_numbers() {
    let directory = TempDir::new();
    let file = |name: &str| {
        fs::write(directory.0.join(name), name).unwrap();
        File::open(directory.0.join(name)).unwrap()
    };
    // Each has a number that is another's target, whatever the numbers are here.
    let (a, b, c) = (file("a"), file("b"), file("c"));
    let (n, m) = (a.as_raw_fd(), b.as_raw_fd());
    fs::write(directory.0.join("numbers"), format!("{n} {m}")).unwrap();
    let numbers = File::open(directory.0.join("numbers")).unwrap();
    // Not listed, and not closed by exec alone.
    let stray = file("stray");
    set_inheritable(stray.as_fd(), true).unwrap();
    let fds = [(a.as_fd(), m), (b.as_fd(), n), (c.as_fd(), 40), (c.as_fd(), 41), (numbers.as_fd(), 50)];
    expect_role("sees_its_fds", NONE, None, &fds);
}

fn sees_its_fds() {
    let read = |number: RawFd| {
        let mut text = String::new();
        File::from(inherited(number)).read_to_string(&mut text).unwrap();
        text
    };
    let open = open_fds();
    let null = fs::metadata("/proc/self/fd/0").unwrap();
    assert!(null.file_type().is_char_device() && null.rdev() == fs::metadata("/dev/null").unwrap().rdev());
    let numbers = read(50);
    let (n, m) = numbers.split_once(' ').unwrap();
    let (n, m) = (n.parse().unwrap(), m.parse().unwrap());
    let mut expected = [0, 1, 2, n, m, 40, 41, 50];
    expected.sort_unstable();
    assert_eq!(open, expected);
    assert_eq!((read(m).as_str(), read(n).as_str(), read(40).as_str()), ("a", "b", "c"));
}

/// As systemd's `RestrictNamespaces=user mnt pid` does it.
fn restricted_namespaces_are_told_apart() {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    let answer = |number, rules, errno: Errno| {
        let action = SeccompAction::Errno(errno as u32);
        let filter = SeccompFilter::new(
            [(number, rules)].into(),
            SeccompAction::Allow,
            action,
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    };
    let network = Namespaces::NET.bits();
    let with_network =
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(network), network).unwrap();
    answer(libc::SYS_clone, vec![SeccompRule::new(vec![with_network]).unwrap()], Errno::EPERM);
    answer(libc::SYS_clone3, vec![], Errno::ENOSYS);

    let refused = start_role("idle", everything(), Some(shifted()), &[]);
    assert!(matches!(refused, Err(SpawnError::Clone { errno: Errno::EPERM, .. })), "{refused:?}");
    let allowed = Namespaces::USER | Namespaces::MOUNT | Namespaces::PID;
    // SAFETY: ignoring a signal runs no handler.
    unsafe { signal(Signal::SIGUSR1, SigHandler::SigIgn) }.unwrap();
    expect_role("sees_default_signals", allowed, Some(shifted()), &[]);
}

fn arguments_and_environment_are_exact() {
    let exe = File::open("/proc/self/exe").unwrap();
    let strings = |texts: &[&str]| texts.iter().map(|text| CString::new(*text).unwrap()).collect();
    let argv = strings(&["name", "--role", "sees_argv", "", "last one"]);
    let envp = strings(&["A=1", "B="]);
    let err = std::io::stderr();
    let fds = vec![(err.as_fd(), 2)];
    let spawn = Spawn { exe: exe.as_fd(), argv, envp, fds, namespaces: NONE, id_maps: None };
    assert_eq!(spawn.spawn().unwrap().wait().unwrap(), Exit::Status(0));
}

fn sees_argv() {
    assert_eq!(std::env::args().collect::<Vec<_>>(), ["name", "--role", "sees_argv", "", "last one"]);
    let variables: Vec<_> = std::env::vars().collect();
    assert_eq!(variables, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), String::new())]);
}

fn the_end_is_reported() {
    for (role, expected) in [
        ("exits_with_7", Exit::Status(7)),
        ("aborts", Exit::Signal { signal: libc::SIGABRT, core_dumped: false }),
        ("dies_by_a_real_time_signal", Exit::Signal { signal: 40, core_dumped: false }),
    ] {
        let mut child = start_role(role, NONE, None, &[]).unwrap();
        assert_eq!(child.wait().unwrap(), expected);
        assert_eq!(child.wait().unwrap(), expected, "again");
        assert_eq!(child.try_wait().unwrap(), Some(expected));
        child.kill().unwrap();
    }
}

fn exits_with_7() {
    std::process::exit(7)
}

fn aborts() {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    std::process::abort()
}

fn dies_by_a_real_time_signal() {
    // SAFETY: raising a signal at its default action, which ends the process.
    unsafe { libc::raise(40) };
}

fn a_kill_is_reported() {
    let (mut rendezvous, theirs) = Rendezvous::pair();
    let mut child = start_role("idle", NONE, None, &[(theirs.as_fd(), RENDEZVOUS_FD)]).unwrap();
    rendezvous.wait();
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Signal { signal: libc::SIGKILL, core_dumped: false });
}

fn dropping_the_child_ends_it() {
    let (mut rendezvous, theirs) = Rendezvous::pair();
    let child = start_role("idle", NONE, None, &[(theirs.as_fd(), RENDEZVOUS_FD)]).unwrap();
    drop(theirs);
    rendezvous.wait();
    let pid = child.pid();
    kill(pid, None).unwrap();
    drop(child);
    rendezvous.wait_for_end();
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
}

fn signals_and_session_are_new() {
    SigSet::all().thread_block().unwrap();
    // SAFETY: ignoring a signal runs no code.
    unsafe { signal(Signal::SIGUSR1, SigHandler::SigIgn) }.unwrap();
    let mut child = start_role("sees_default_signals", NONE, None, &[]).unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Signal { signal: libc::SIGUSR1, core_dumped: false });
}

fn sees_default_signals() {
    assert_eq!(status_mask("self", "SigBlk"), 0);
    let ignored = status_mask("self", "SigIgn");
    // Rust's runtime ignores SIGPIPE before main.
    assert_eq!(ignored & !(1 << (libc::SIGPIPE - 1)), 0);
    assert_eq!(getsid(None).unwrap(), getpid());
    raise(Signal::SIGUSR1).unwrap();
}

fn a_refused_exec_is_named() {
    let directory = TempDir::new();
    let path = directory.0.join("program");
    for (mode, errno) in [(0o600, Errno::EACCES), (0o700, Errno::ENOEXEC)] {
        fs::write(&path, "not a program").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let exe = File::open(&path).unwrap();
        let argv = vec![c"program".to_owned()];
        let spawn =
            Spawn { exe: exe.as_fd(), argv, envp: vec![], fds: vec![], namespaces: NONE, id_maps: None };
        let error = spawn.spawn().unwrap_err();
        assert!(
            matches!(error, SpawnError::Child { step: Step::Exec, errno: found } if found == errno),
            "{error}"
        );
        assert!(error.to_string().contains("execute its program"), "{error}");
        assert_no_children();
    }
}

fn an_impossible_fd_is_named() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
    let file = File::open("/").unwrap();
    let error = start_role("idle", NONE, None, &[(file.as_fd(), 100)]).unwrap_err();
    assert!(matches!(error, SpawnError::Child { step: Step::PlaceFds, errno: Errno::EINVAL }), "{error}");
    assert_no_children();
}

fn bad_requests_are_refused() {
    let file = File::open("/").unwrap();
    let twice = start_role("idle", NONE, None, &[(file.as_fd(), 5), (file.as_fd(), 5)]).unwrap_err();
    assert!(matches!(twice, SpawnError::FdTwice(5)), "{twice}");
    for number in [-1, RawFd::MAX] {
        let range = start_role("idle", NONE, None, &[(file.as_fd(), number)]).unwrap_err();
        assert!(matches!(range, SpawnError::FdRange(found) if found == number), "{range}");
    }
    let maps = start_role("idle", NONE, Some(shifted()), &[]).unwrap_err();
    assert!(matches!(maps, SpawnError::MapsWithoutNamespace { id_maps: true }), "{maps}");
    let maps = start_role("idle", Namespaces::USER, None, &[]).unwrap_err();
    assert!(matches!(maps, SpawnError::MapsWithoutNamespace { id_maps: false }), "{maps}");
    let spawn =
        Spawn { exe: file.as_fd(), argv: vec![], envp: vec![], fds: vec![], namespaces: NONE, id_maps: None };
    assert!(matches!(spawn.spawn(), Err(SpawnError::NoArguments)));
    assert_no_children();
}

fn bad_id_maps_are_named() {
    let line = |inner, outer, count| IdMapEntry { inner, outer, count };
    let maps = |uid: &[IdMapEntry], gid: &[IdMapEntry]| {
        Some(IdMaps { uid: uid.to_vec(), gid: gid.to_vec(), setgroups_deny: false })
    };
    let good = [line(0, 100_000, 10)];
    let overlap = start_role("idle", everything(), maps(&good, &[line(0, 5, 2), line(1, 9, 1)]), &[]);
    match overlap.unwrap_err() {
        SpawnError::IdMaps(IdMapError::Write { path, content, source }) => {
            assert!(path.ends_with("gid_map"), "{path:?}");
            assert_eq!(content, "0 5 2;1 9 1");
            assert_eq!(source.raw_os_error(), Some(libc::EINVAL));
        }
        error => panic!("{error}"),
    }
    let empty = start_role("idle", everything(), maps(&[], &good), &[]).unwrap_err();
    assert!(matches!(empty, SpawnError::IdMaps(IdMapError::Length { map: "uid_map", count: 0 })), "{empty}");
    for (uid, gid, expected) in
        [(&good[..], &[line(5, 5, 1)][..], Step::SetGid), (&[line(5, 5, 1)], &good, Step::SetUid)]
    {
        let error = start_role("idle", everything(), maps(uid, gid), &[]).unwrap_err();
        assert!(
            matches!(error, SpawnError::Child { step, errno: Errno::EINVAL } if step == expected),
            "{error}"
        );
    }
    assert_no_children();
}

/// The parent aborts, so that none of its code runs; the child's death shows as the end of the pipe.
fn the_child_dies_with_its_parent() {
    let mut parent = Command::new("/proc/self/exe")
        .args(["--role", "starts_idle_and_dies"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    parent.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    assert!(!parent.wait().unwrap().success());
}

fn starts_idle_and_dies() {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let start = |namespaces, maps| {
        let (mut rendezvous, theirs) = Rendezvous::pair();
        // The child holds the pipe to the case as its standard output.
        let fds = [(theirs.as_fd(), RENDEZVOUS_FD)];
        let child = start_role("waits_to_be_killed", namespaces, maps, &fds).unwrap();
        rendezvous.wait();
        child
    };
    let _plain = start(NONE, None);
    let _confined = start(everything(), Some(IdMaps::own()));
    std::process::abort()
}

fn waits_to_be_killed() {
    Rendezvous::inherited().signal();
    // Long enough for anything to be killed in; not for ever, so that a failure leaves nothing behind.
    std::thread::sleep(std::time::Duration::from_secs(20));
    println!("outlived its parent");
}

fn confinement_keeps_the_tie_to_the_parent() {
    expect_role("confines_itself", everything(), Some(shifted()), &[]);
}

/// The kernel forgets the parent-death signal of a thread that changes its ids.
fn confines_itself() {
    assert_eq!(get_pdeathsig(), Ok(Some(Signal::SIGKILL)));
    enter_empty_root().unwrap();
    forbid_core_dumps().unwrap();
    limit_to([Capability::CAP_SETUID, Capability::CAP_SETGID].into_iter().collect()).unwrap();
    forbid_new_privileges().unwrap();
    let baseline = Baseline::capture().unwrap();
    let queue = std::thread::spawn(move || {
        let mut credentials = ThreadCredentials::new(&baseline).unwrap();
        credentials.become_user(1000, 1000, &[]).unwrap();
        credentials.become_root();
    });
    queue.join().unwrap();
    assert_eq!(get_pdeathsig(), Ok(Some(Signal::SIGKILL)));
}

/// A broker that has given up what it no longer needs, for good, still restarts a worker.
fn a_limited_parent_can_start_workers() {
    limit_to([Capability::CAP_SETUID, Capability::CAP_SETGID].into_iter().collect()).unwrap();
    forbid_new_privileges().unwrap();
    expect_role("has_all_capabilities", everything(), Some(shifted()), &[]);
    let file = File::open("/").unwrap();
    expect_role("has_all_capabilities", everything(), Some(shifted()), &[(file.as_fd(), FIRST_FD)]);
}

fn has_all_capabilities() {
    assert_eq!(status_mask("self", "CapEff"), status_mask("self", "CapBnd"));
    assert_ne!(status_mask("self", "CapEff"), 0);
    assert_eq!(status_mask("self", "NoNewPrivs"), 1);
}
