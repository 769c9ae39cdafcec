//! Front ends, fixtures and helpers for the test suites and the benchmarks.
//!
//! Everything here stands outside the daemon: it starts a daemon by its command line, ours or a peer's, and
//! talks to it as a VMM and a guest would. It has its own encoders for vhost-user, virtqueues and FUSE, on
//! purpose: an oracle that shares the daemon's decoder would share its mistakes.
//!
//! - [`bounded`] runs a test within a time limit and in a mount namespace of its own.
//! - [`meanwhile`] has something go on beside it.
//! - [`daemon`] starts and stops a daemon; [`peers`] knows where ours and the peers' binaries are.
//! - [`share`] makes the directories that are served, [`mounts`] file systems to mount in them.
//! - [`frontend`] is the VMM and the guest's virtqueue driver, in this process.
//! - [`fuse`] is a small FUSE client on top of it.
//! - [`bridge`] connects the host kernel's FUSE client to the virtqueues, so that ordinary programs run
//!   against the daemon without a VM.
//! - [`guest`] boots a real guest under QEMU.
//! - [`procfs`] reads what the kernel says about a process.
//! - `inject` makes a running process execute system calls of our choice (x86_64).
//! - [`script`] makes scripts of operations, and [`chores`] has what one call can't do: both run natively, through the
//!   bridge and in a guest, with the same results.
//! - [`program`] runs such programs, bounded; [`tools`] has those that no distribution packages.
//! - [`mod@bench`] measures daemons side by side.

pub mod bench;
pub mod bounded;
pub mod bridge;
pub mod chores;
pub mod daemon;
pub mod frontend;
pub mod fuse;
pub mod guest;
#[cfg(target_arch = "x86_64")]
pub mod inject;
pub mod meanwhile;
pub mod mounts;
pub mod paths;
pub mod peers;
pub mod pjdfstest;
pub mod processes;
pub mod procfs;
pub mod program;
pub mod script;
pub mod share;
pub mod tools;
