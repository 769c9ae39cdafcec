//! The benchmark: daemons side by side on the same directory, through the in-process front end.
//!
//! What it measures is the daemon: the front end behaves like a Linux guest's driver but costs little, and its
//! own CPU time is reported beside the daemon's. All daemons of a round run at the same time, and each workload
//! goes through all of them before the next one begins, so that what disturbs one disturbs all; of several
//! rounds the medians count. [`native`] does the same work as plain system calls: the limit.
//!
//! - [`spec`]: which daemons, [`workload`]: which work, [`fixture`]: on which files.
//! - [`guest`]: a started daemon; [`message`]: requests; [`engine`]: the loop that keeps requests in flight and
//!   measures; [`scripts`]: what the workloads send; [`histogram`] and [`tree`]: what is measured.
//! - [`run`]: rounds; [`million`]: a working set of a million inodes; [`syscalls`]: system calls per request;
//!   [`kernel`]: ordinary programs, through the kernel's own client; [`recorder`]: what counting costs.
//! - [`report`] prints, [`proofs`] judges.

pub mod engine;
pub mod fixture;
pub mod guest;
pub mod histogram;
pub mod kernel;
pub mod message;
pub mod million;
pub mod native;
pub mod proofs;
pub mod recorder;
pub mod report;
pub mod run;
pub mod scripts;
pub mod spec;
pub mod syscalls;
pub mod tree;
pub mod workload;

use std::io;

use nix::errno::Errno;

use crate::frontend;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The daemon answered with an error.
    #[error("{0}")]
    Errno(Errno),
    /// The daemon's reply makes no sense, or the front end was asked for too much.
    #[error("{0}")]
    Malformed(&'static str),
    /// The daemon is gone or broke the transport's rules.
    #[error("{0}")]
    FrontEnd(#[from] frontend::Error),
    /// The daemon did not start.
    #[error("{0}")]
    Boot(String),
    /// The daemon ended while it was measured.
    #[error("the daemon has ended; last it wrote: {0}")]
    Ended(String),
    /// A system call of ours failed.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<nix::Error> for Failure {
    fn from(errno: nix::Error) -> Failure {
        Failure::System(errno.into())
    }
}
