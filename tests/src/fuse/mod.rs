//! A small FUSE client over a virtqueue: it says what a guest's kernel would say and returns results, or the
//! errno that the daemon answered.
//!
//! It checks each reply's form as Linux's driver does (used length, header length, request id, an error
//! without data) and panics where the daemon broke it; nothing here trusts or shares the daemon's own decoder.
//!
//! - [`wire`]: message layouts.
//! - [`client`]: one request at a time, with typed results, or raw.
//! - `scattered`: the same with data in pages that lie apart.
//! - [`session`]: a daemon, a device and a client, started and ended together.

pub mod client;
mod scattered;
pub mod session;
pub mod wire;

pub use client::{Caller, Client, DirEntry, Reply, SetAttr};
pub use session::Session;

/// A result or the daemon's errno.
pub type Result<T> = std::result::Result<T, nix::errno::Errno>;
