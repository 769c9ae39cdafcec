use nix::errno::Errno;
use nix::sys::prctl::get_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sandbox::rlimits::{DEFAULT_NOFILE, default_nofile, forbid_core_dumps, lower, set_nofile};

use crate::harness::{Case, cases};

pub const CASES: &[Case] = cases![
    Root: nofile_is_set, nofile_falls_back_to_the_hard_limit, limits_go_down, no_core_dumps;
    Ordinary: nofile_is_set, nofile_falls_back_to_the_hard_limit, limits_stay_down, no_core_dumps;
];

fn nr_open() -> u64 {
    std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().parse().unwrap()
}

fn nofile_is_set() {
    assert_eq!(default_nofile().unwrap(), nr_open().min(DEFAULT_NOFILE));
    let applied = set_nofile(100).unwrap();
    assert_eq!((applied.soft, applied.warning), (100, None));
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((100, 100)));
}

fn nofile_falls_back_to_the_hard_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 50, hard).unwrap();
    // Above fs.nr_open nobody gets it.
    let wanted = nr_open() + 1;
    let applied = set_nofile(wanted).unwrap();
    let warning = applied.warning.unwrap();
    assert_eq!((warning.wanted, warning.applied, warning.errno), (wanted, hard, Errno::EPERM));
    assert!(warning.to_string().contains(&format!("is {hard}, not {wanted}")), "{warning}");
    assert_eq!(applied.soft, hard);
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
}

fn limits_go_down() {
    lower(Resource::RLIMIT_FSIZE, 1 << 20).unwrap();
    assert_eq!(getrlimit(Resource::RLIMIT_FSIZE), Ok((1 << 20, 1 << 20)));
    // More than there is changes nothing.
    lower(Resource::RLIMIT_FSIZE, 1 << 30).unwrap();
    assert_eq!(getrlimit(Resource::RLIMIT_FSIZE), Ok((1 << 20, 1 << 20)));
}

fn limits_stay_down() {
    limits_go_down();
    assert_eq!(setrlimit(Resource::RLIMIT_FSIZE, 1 << 21, 1 << 21), Err(Errno::EPERM));
}

fn no_core_dumps() {
    assert!(get_dumpable().unwrap() || !nix::unistd::geteuid().is_root());
    forbid_core_dumps().unwrap();
    assert!(!get_dumpable().unwrap());
    assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
}
