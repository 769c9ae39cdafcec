use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, fcntl};
use sandbox::fds::{close_on_exec_from, keep_only, set_inheritable};

use crate::harness::{Case, cases, open_fds};

pub const CASES: &[Case] = cases![
    Root: only_the_listed_are_kept, all_from_a_number_close_on_exec;
    Ordinary: only_the_listed_are_kept, all_from_a_number_close_on_exec;
];

fn only_the_listed_are_kept() {
    let files: Vec<File> = (0..20).map(|_| File::open("/").unwrap()).collect();
    let kept = files[7].as_raw_fd();
    // Their numbers are about to be closed, or kept without an owner.
    let numbers: Vec<_> = files.into_iter().map(std::os::fd::IntoRawFd::into_raw_fd).collect();
    assert!(numbers.iter().all(|number| open_fds().contains(number)));
    // SAFETY: this process has one thread, and it uses none of its descriptors but the standard ones.
    unsafe { keep_only(&[0, 1, 2, kept]) }.unwrap();
    assert_eq!(open_fds(), [0, 1, 2, kept]);
}

fn all_from_a_number_close_on_exec() {
    let files: Vec<File> = (0..4).map(|_| File::open("/").unwrap()).collect();
    let close_on_exec = |file: &File| fcntl(file, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC != 0;
    for file in &files {
        set_inheritable(file.as_fd(), true).unwrap();
    }
    close_on_exec_from(files[2].as_raw_fd() as u32).unwrap();
    assert_eq!(files.iter().map(close_on_exec).collect::<Vec<_>>(), [false, false, true, true]);
}
