//! System call policies: what the data says, what the compiled programs do on every architecture, and what the
//! running kernel does with them.

// Clippy's allowances for tests reach only functions marked #[test], not their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "seccomp/bpf.rs"]
mod bpf;
#[path = "seccomp/cases.rs"]
mod cases;
#[path = "seccomp/child.rs"]
mod child;
#[path = "../build/compile.rs"]
mod compile;
#[path = "seccomp/kernel.rs"]
mod kernel;
#[path = "../build/policy.rs"]
mod policy;
#[path = "seccomp/programs.rs"]
mod programs;
#[path = "../src/seccomp/tree.rs"]
mod tree;
