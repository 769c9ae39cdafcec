//! System call policies: what the data says, what the compiled programs do on every architecture, and what the
//! running kernel does with them.

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
