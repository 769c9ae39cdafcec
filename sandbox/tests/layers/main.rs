//! Tests of the layers, each case in a process of its own.
//!
//! Cases change what belongs to a whole process (credentials, capabilities, mounts, limits), so this test has its
//! own `main`: without arguments it executes itself once a case, as root or as an ordinary user; the programs that
//! cases start in namespaces are this executable too ("roles"). It must be started by root, with the Debian
//! package uidmap installed. Arguments that are no options select cases by a part of their name.

// The exceptions that .clippy.toml makes for test functions, for a test without the standard harness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::exit)]

mod capabilities;
mod credentials;
mod fds;
mod graft;
mod harness;
mod id_maps;
mod mounts;
mod namespaces;
mod process;
mod rlimits;

use std::process::ExitCode;

use harness::{Case, Role};

const CASES: [&[Case]; 9] = [
    fds::CASES,
    process::CASES,
    namespaces::CASES,
    id_maps::CASES,
    mounts::CASES,
    graft::CASES,
    credentials::CASES,
    capabilities::CASES,
    rlimits::CASES,
];

const ROLES: [&[Role]; 6] = [
    process::ROLES,
    namespaces::ROLES,
    id_maps::ROLES,
    mounts::ROLES,
    credentials::ROLES,
    capabilities::ROLES,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--case", name] => harness::run_case(&CASES.concat(), name),
        ["--role", name, ..] => harness::run_role(&ROLES.concat(), name),
        _ => harness::run_all(&CASES.concat(), &arguments),
    }
}
