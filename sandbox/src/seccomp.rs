//! System call filters: the policies of `seccomp-policies/`, compiled into this library, put in force.
//!
//! The build script turned the policies into BPF for this architecture; here a program is joined from the
//! policy's blocks, those of the widenings that the configuration asks for, and the mode's default action (`tree`).
//! Nothing else is decided at run time, and debug and release have the same programs.
//!
//! Calls that a policy allows whatever their arguments cost no BPF: when a filter is attached, the kernel
//! (5.11 and later) runs it once for each call number and remembers those that it always allows.
//!
//! What a policy allows and why is not here but in `seccomp-policies/`.

use std::fmt;

use seccompiler::{BpfProgram, SeccompAction, sock_filter};

mod tree;

/// BPF instruction as the build script writes it: code, jump if true, jump if false, value.
type Instruction = (u16, u8, u8, u32);

struct Table {
    prologue: &'static [Instruction],
    base: &'static [Instruction],
    widenings: &'static [Widening],
}

struct Widening {
    name: &'static str,
    why: &'static str,
    blocks: &'static [Instruction],
}

include!(concat!(env!("OUT_DIR"), "/seccomp_policies.rs"));

/// Whose system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The process that serves the guest.
    Worker,
    /// The process that keeps the privileges.
    Broker,
    /// The process that shows counters.
    Exporter,
    /// The process that shows the host's new mounts to the worker.
    Follower,
}

impl Policy {
    fn table(self) -> &'static Table {
        match self {
            Self::Worker => &WORKER,
            Self::Broker => &BROKER,
            Self::Exporter => &EXPORTER,
            Self::Follower => &FOLLOWER,
        }
    }

    /// The names that [`apply`] takes for this policy, with what each is for.
    pub fn widenings(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.table().widenings.iter().map(|widening| (widening.name, widening.why))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Broker => "broker",
            Self::Exporter => "exporter",
            Self::Follower => "follower",
        })
    }
}

/// What happens on a call that the policy does not have.
///
/// A call by another architecture's numbers (a 32-bit call on a 64-bit kernel) kills in every mode but `None`:
/// the policy cannot tell what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No filter.
    None,
    /// The kernel kills the process (SIGSYS) and logs the call.
    Kill,
    /// The kernel logs the call and lets it happen; for finding what a policy lacks.
    Log,
    /// The thread gets SIGSYS, fatal unless handled.
    Trap,
}

/// What [`apply`] put in force, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Whose policy.
    pub policy: Policy,
    /// What happens on other calls.
    pub mode: Mode,
    /// The widenings, in the order asked for.
    pub widenings: Vec<&'static str>,
    /// Length of the program, 0 in [`Mode::None`].
    pub instructions: usize,
}

/// Why no filter is in force.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A widening that the policy does not know.
    #[error("the {policy} seccomp policy has no widening {name:?}; it has: {}", known(*.policy))]
    UnknownWidening {
        /// Whose policy.
        policy: Policy,
        /// What was asked for.
        name: String,
    },
    /// The process may still gain privileges by execve, so the kernel would not take a filter without one.
    #[error(
        "cannot apply the {policy} seccomp policy: no_new_privs is not set; set it first, it is the step before"
    )]
    NewPrivileges {
        /// Whose policy.
        policy: Policy,
    },
    /// The kernel did not tell whether no_new_privs is set.
    #[error("cannot apply the {policy} seccomp policy: reading no_new_privs failed: {source}")]
    ReadNoNewPrivs {
        /// Whose policy.
        policy: Policy,
        /// The kernel's answer.
        source: nix::errno::Errno,
    },
    /// The kernel did not take the filter.
    #[error(
        "cannot apply the {policy} seccomp policy: {source}; does the kernel have CONFIG_SECCOMP_FILTER, and does \
         an outer filter allow the seccomp call? (--seccomp=none runs without)"
    )]
    Attach {
        /// Whose policy.
        policy: Policy,
        /// The kernel's answer.
        source: seccompiler::Error,
    },
}

fn known(policy: Policy) -> String {
    policy.widenings().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

/// Puts `policy` in force for all threads of this process, for good. `extra` names widenings of the policy;
/// each is logged.
///
/// # Errors
///
/// [`SeccompError`]; no filter is in force then. no_new_privs must be set already.
pub fn apply(policy: Policy, mode: Mode, extra: &[&str]) -> Result<Applied, SeccompError> {
    let widenings = find(policy, extra)?;
    let names: Vec<_> = widenings.iter().map(|widening| widening.name).collect();
    let Some(program) = program(policy, mode, extra)? else {
        return Ok(Applied { policy, mode, widenings: names, instructions: 0 });
    };
    match nix::sys::prctl::get_no_new_privs() {
        Ok(true) => {}
        Ok(false) => return Err(SeccompError::NewPrivileges { policy }),
        Err(source) => return Err(SeccompError::ReadNoNewPrivs { policy, source }),
    }
    // Before the filter, so that logging needs nothing of it.
    for widening in &widenings {
        log::info!("seccomp: the {policy} policy is widened by {:?}: {}", widening.name, widening.why);
    }
    seccompiler::apply_filter_all_threads(&program)
        .map_err(|source| SeccompError::Attach { policy, source })?;
    Ok(Applied { policy, mode, widenings: names, instructions: program.len() })
}

/// The program that [`apply`] would attach; `None` in [`Mode::None`].
///
/// # Errors
///
/// [`SeccompError::UnknownWidening`].
pub fn program(policy: Policy, mode: Mode, extra: &[&str]) -> Result<Option<BpfProgram>, SeccompError> {
    let widenings = find(policy, extra)?;
    let default = match mode {
        Mode::None => return Ok(None),
        Mode::Kill => SeccompAction::KillProcess,
        Mode::Log => SeccompAction::Log,
        Mode::Trap => SeccompAction::Trap,
    };
    let table = policy.table();
    let filter = |&(code, jt, jf, k): &Instruction| sock_filter { code, jt, jf, k };
    let prologue: Vec<_> = table.prologue.iter().map(filter).collect();
    let widened = widenings.iter().flat_map(|widening| widening.blocks);
    let blocks: Vec<_> = table.base.iter().chain(widened).map(filter).collect();
    Ok(Some(tree::join(&prologue, &blocks, &sock_filter { code: RETURN, jt: 0, jf: 0, k: default.into() })))
}

/// BPF_RET | BPF_K
const RETURN: u16 = 0x06;

fn find(policy: Policy, names: &[&str]) -> Result<Vec<&'static Widening>, SeccompError> {
    names
        .iter()
        .map(|&name| {
            policy
                .table()
                .widenings
                .iter()
                .find(|widening| widening.name == name)
                .ok_or_else(|| SeccompError::UnknownWidening { policy, name: name.to_owned() })
        })
        .collect()
}
