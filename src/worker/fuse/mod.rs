//! The FUSE protocol as this daemon speaks it: wire structs, a total decoder, an encoder. Makes no system
//! call and touches no guest memory.
//!
//! In the order of a request: [`wire`] (bytes) → [`decode`] (checks) → [`operation`] (what is asked) → the
//! file system → [`reply`] and [`dirent`] (bytes again). [`negotiate`] settles once, at INIT, what both sides
//! may use.

pub mod decode;
pub mod dirent;
pub mod negotiate;
pub mod operation;
pub mod reply;
pub mod wire;
