//! Runs a test within a time limit and in a mount namespace of its own.
//!
//! A test that hangs in a system call can't be ended from within: a FUSE request that is never answered
//! blocks its thread for good. So on a timeout all processes that were started are killed and this process
//! aborts, with what the threads were doing on stderr.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::processes;

/// Runs `test` in a new thread with a private mount namespace: mounts made by it, or by what it starts, are
/// invisible elsewhere and vanish with the last process in it. A panic is passed on.
///
/// After `limit` the whole test process is aborted: the run has failed.
pub fn bounded<T: Send>(limit: Duration, test: impl FnOnce() -> T + Send) -> T {
    let (done, wait) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let result = panic::catch_unwind(AssertUnwindSafe(|| {
                private_mounts();
                test()
            }));
            // The receiver waits until we send or it aborts the process.
            let _ = done.send(result);
        });
        match wait.recv_timeout(limit) {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => panic::resume_unwind(panic),
            Err(RecvTimeoutError::Timeout) => give_up(limit),
            Err(RecvTimeoutError::Disconnected) => panic!("the test thread vanished without a result"),
        }
    })
}

/// Gives the calling thread, and the threads and processes that it starts from now on, a mount namespace of
/// its own.
fn private_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare(CLONE_NEWNS): the suites run as root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("make all mounts private");
}

fn give_up(limit: Duration) -> ! {
    eprintln!("a test did not end within {limit:?}; threads of this process:");
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        eprintln!("{} {}{}", task.file_name().to_string_lossy(), read("comm"), read("stack"));
    }
    let own = i32::try_from(std::process::id()).expect("a pid fits an i32");
    for pid in processes::descendants(own) {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let stack = fs::read_to_string(format!("/proc/{pid}/stack")).unwrap_or_default();
        eprintln!("still running: {pid} {}\n{stack}", String::from_utf8_lossy(&command).replace('\0', " "));
    }
    processes::kill_all_descendants();
    std::process::abort();
}
