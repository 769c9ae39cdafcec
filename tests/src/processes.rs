//! Looks at and ends processes that this test process started, and no others.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process id held by a pidfd, so that it can't come to mean another process.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process `pid`, which must be a child of this process that was not reaped yet.
    pub fn open(pid: u32) -> io::Result<PidFd> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel just returned this descriptor, and nobody else has it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal; to a process that has ended it is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        // SAFETY: pidfd_send_signal takes integers and a null pointer, which means default signal info.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match result {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                e => Err(e),
            },
        }
    }

    /// Waits until the process has ended; `false` when `limit` passes first.
    pub fn ended_within(&self, limit: Duration) -> io::Result<bool> {
        let end = Instant::now() + limit;
        loop {
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, remaining(end)) {
                // One poll waits at most for 65 seconds.
                Ok(0) if Instant::now() < end => {}
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(nix::Error::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// What is left until `end`, as a poll timeout, rounded up to a millisecond.
pub fn remaining(end: Instant) -> PollTimeout {
    let left = end.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
    PollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
}

/// All living descendants of `root`, nearest first.
pub fn descendants(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between the listing and this.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(parent) = parent_in_stat(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        found.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    found.split_off(1)
}

/// The parent's pid in the text of `/proc/PID/stat`: the second field after the name, which stands in
/// parentheses and may contain any byte.
fn parent_in_stat(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Kills every descendant of this process. For the watchdog only: nothing that was started survives it.
pub fn kill_all_descendants() {
    let own = i32::try_from(std::process::id()).expect("a pid fits an i32");
    for pid in descendants(own) {
        // One that ended in between is what we want.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::parent_in_stat;

    #[test]
    fn parent_is_found_behind_any_name() {
        assert_eq!(parent_in_stat("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in_stat("12 (x"), None);
    }
}
