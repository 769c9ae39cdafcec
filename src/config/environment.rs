//! What the command line's meaning depends on besides its own words.

use std::ffi::OsString;
use std::num::NonZero;
use std::thread;

use super::Activation;

/// Facts of the process and the host that defaults and checks need. A parameter rather than a look-up, so that
/// tests say what they assume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The variable `RUST_LOG`; it overrides `--log-level`.
    pub rust_log: Option<OsString>,
    /// CPUs that this process may use; the default of `--num-request-queues`.
    pub cpus: NonZero<usize>,
    /// The effective user id is 0.
    pub root: bool,
    /// Sockets that systemd has passed.
    pub activation: Activation,
}

impl Environment {
    /// Those of this process. A number of CPUs that the kernel won't tell counts as one.
    pub fn of_this_process() -> Self {
        Self {
            rust_log: std::env::var_os("RUST_LOG"),
            cpus: thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
            root: nix::unistd::geteuid().is_root(),
            activation: Activation::from_environment(std::process::id(), |name| std::env::var_os(name)),
        }
    }
}
