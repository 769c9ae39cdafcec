//! What the worker's end means, in one line for the operator.

use nix::sys::signal::Signal;
use sandbox::process::Exit;

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The front end has disconnected, and the worker ended well.
    Disconnected,
    /// A signal asked the broker to end.
    Stopped(Signal),
    /// The worker failed, or was killed.
    Failed,
}

impl Outcome {
    /// The daemon's exit status, as documented: 0 only after the front end has disconnected.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Disconnected => 0,
            Self::Stopped(_) | Self::Failed => 1,
        }
    }
}

/// Says why the worker failed; `None` when it did not.
pub fn explain(exit: Exit) -> Option<String> {
    let signal = match exit {
        Exit::Status(0) => return None,
        Exit::Status(status) => {
            return Some(format!("the worker failed with status {status}; its own lines above say why"));
        }
        Exit::Signal { signal, .. } => signal,
    };
    let meaning = match Signal::try_from(signal) {
        Ok(Signal::SIGSYS) => {
            "it made a system call that its seccomp policy does not have. That is an attack from the guest, or a gap in \
             the policy: the kernel's log names the call (audit type 1326), --seccomp=log finds more of them"
        }
        Ok(Signal::SIGBUS) => {
            "guest memory that the front end had shared was gone when it was used: the front end cut the memory's file \
             short, or the host could not provide a page of it (huge pages, /dev/shm size, memory error)"
        }
        Ok(Signal::SIGKILL) => {
            "somebody killed it: the kernel when memory ran out (see its log for \"oom\"), a resource limit, or an operator"
        }
        // In a pid namespace of its own, as process 1, a worker that aborts ends by SIGSEGV: SIGABRT does nothing to it.
        Ok(Signal::SIGABRT | Signal::SIGSEGV | Signal::SIGILL | Signal::SIGFPE | Signal::SIGTRAP) => {
            "it crashed, or gave up in a state that must not be: a bug in this program, perhaps one that the guest can \
             reach. Its own lines above, if any, say more; please report it"
        }
        Ok(Signal::SIGXCPU | Signal::SIGXFSZ) => "it reached a resource limit",
        _ => "nobody expected that signal",
    };
    Some(format!("the worker {exit}: {meaning}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_own_line() {
        assert_eq!(explain(Exit::Status(0)), None);
        let text = |signal| explain(Exit::Signal { signal, core_dumped: false }).unwrap();
        assert!(explain(Exit::Status(3)).unwrap().contains("status 3"));
        for (signal, words) in [
            (libc::SIGSYS, "seccomp"),
            (libc::SIGBUS, "guest memory"),
            (libc::SIGKILL, "memory ran out"),
            (libc::SIGSEGV, "crashed"),
            (libc::SIGRTMIN(), "nobody expected"),
        ] {
            assert!(text(signal).contains(words), "{signal}: {}", text(signal));
            assert!(!text(signal).contains('\n'));
        }
    }

    #[test]
    fn only_a_disconnected_front_end_is_success() {
        assert_eq!(Outcome::Disconnected.exit_code(), 0);
        assert_eq!(Outcome::Stopped(Signal::SIGTERM).exit_code(), 1);
        assert_eq!(Outcome::Failed.exit_code(), 1);
    }
}
