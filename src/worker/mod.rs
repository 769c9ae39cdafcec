//! HOSTILE once a guest runs: the vhost-user loop and the passthrough file system.
//!
//! The walk of one request, in order: [`queue`](self) → `buffers` → `fuse` (decode) → `dispatch` → `fs` →
//! `fuse` (encode) → queue.

pub mod broker_client;
pub mod fuse;
pub mod log;
