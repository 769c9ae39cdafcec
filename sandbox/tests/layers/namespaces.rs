use std::fs;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::unistd::getpid;
use sandbox::id_maps::IdMaps;
use sandbox::namespaces::Namespaces;
use sandbox::network::{NetworkError, NetworkNamespace};
use sandbox::process::SpawnError;

use crate::harness::{
    Case, RENDEZVOUS_FD, Rendezvous, Role, assert_no_children, cases, everything, expect_role, roles,
    shifted, start_role,
};

pub const CASES: &[Case] = cases![
    Root: exactly_the_listed_are_new, each_alone_is_new, they_confine, a_network_made_ahead_is_entered_and_left;
    Ordinary: exactly_the_listed_are_new, none_without_a_user_namespace, they_confine,
        no_network_is_made_ahead_without_privilege;
];

pub const ROLES: &[Role] = roles![sees_nothing_of_the_host, has_no_say_over_its_network];

fn maps() -> IdMaps {
    if nix::unistd::geteuid().is_root() { shifted() } else { IdMaps::own() }
}

/// Which namespaces of a child differ from ours.
fn new_ones(namespaces: Namespaces) -> Vec<&'static str> {
    let maps = namespaces.contains(Namespaces::USER).then(maps);
    let (mut rendezvous, theirs) = Rendezvous::pair();
    let child = start_role("idle", namespaces, maps, &[(theirs.as_fd(), RENDEZVOUS_FD)]).unwrap();
    rendezvous.wait();
    let of = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    let pid = child.pid().to_string();
    everything().proc_names().filter(|name| of(&pid, name) != of("self", name)).collect()
}

fn exactly_the_listed_are_new() {
    for namespaces in [everything(), Namespaces::USER, Namespaces::USER | Namespaces::NET | Namespaces::PID] {
        assert_eq!(new_ones(namespaces), namespaces.proc_names().collect::<Vec<_>>());
    }
}

fn each_alone_is_new() {
    assert_eq!(new_ones(Namespaces::empty()), [""; 0]);
    for namespace in everything().iter() {
        assert_eq!(new_ones(namespace), namespace.proc_names().collect::<Vec<_>>());
    }
}

fn none_without_a_user_namespace() {
    for namespace in everything().difference(Namespaces::USER).iter() {
        let error = start_role("idle", namespace, None, &[]).unwrap_err();
        assert!(matches!(error, SpawnError::Clone { errno: Errno::EPERM, .. }), "{error}");
        assert!(error.to_string().contains(namespace.proc_names().next().unwrap()), "{error}");
    }
    assert_no_children();
}

fn they_confine() {
    let before = nix::unistd::gethostname().unwrap();
    expect_role("sees_nothing_of_the_host", everything(), Some(maps()), &[]);
    assert_eq!(nix::unistd::gethostname().unwrap(), before);
}

fn sees_nothing_of_the_host() {
    assert_eq!(getpid().as_raw(), 1);
    // PID 1 of the host, and this process's parent, are not there to be signalled.
    assert_eq!(nix::unistd::getppid().as_raw(), 0);
    assert_eq!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(2), None), Err(Errno::ESRCH));
    sees_no_network();
    nix::unistd::sethostname("inside").unwrap();
}

fn sees_no_network() {
    let devices = fs::read_to_string("/proc/self/net/dev").unwrap();
    let names: Vec<_> = devices.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
    assert!(names.iter().all(|name| name.trim() == "lo"), "{names:?}");
}

fn a_network_made_ahead_is_entered_and_left() {
    let own = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = own();
    let network = NetworkNamespace::begin().unwrap().finish().unwrap();
    let inside = network.inside(|| {
        let others = everything().difference(Namespaces::NET);
        expect_role("has_no_say_over_its_network", others, Some(maps()), &[]);
        own()
    });
    assert_ne!(inside.unwrap(), before);
    assert_eq!(own(), before);
}

/// Root in a user namespace of its own: it is not the one that the network namespace belongs to.
fn has_no_say_over_its_network() {
    sees_no_network();
    // SAFETY: a plain system call.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    assert_eq!(Errno::result(raw), Err(Errno::EPERM));
}

fn no_network_is_made_ahead_without_privilege() {
    let error = NetworkNamespace::begin().unwrap().finish().unwrap_err();
    assert!(matches!(error, NetworkError::Make(Errno::EPERM)), "{error}");
    assert!(error.to_string().starts_with("cannot make a network namespace"), "{error}");
}
