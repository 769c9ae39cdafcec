//! Compiles `seccomp-policies/` for the target architecture into tables that `src/seccomp.rs` includes.
//!
//! The build fails on a policy that does not parse, names an unknown system call or contradicts itself. The
//! profile (debug, release) has no say in what comes out.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use seccompiler::sock_filter;

#[path = "build/compile.rs"]
mod compile;
#[path = "build/policy.rs"]
mod policy;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../seccomp-policies");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    if !policy::ARCHITECTURES.contains(&arch.as_str()) {
        return Err(format!("no seccomp policies for {arch}; see seccomp-policies/README.md").into());
    }
    let mut tables = String::new();
    for name in policy::POLICIES {
        let policy = policy::load(&root, &arch, name)?;
        writeln!(tables, "static {}: Table = {};", name.to_uppercase(), table(&policy, &arch)?)?;
        for file in &policy.files {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("seccomp_policies.rs");
    fs::write(out, tables)?;
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(directory) = static_unwinder() {
        println!("cargo::rustc-link-search=native={}", directory.display());
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
    Ok(())
}

/// Where GCC keeps its unwinder as an archive. The standard library asks for the shared one, which each start of a
/// process would have to find, map and relocate (0.1 ms, and a start is two); when the archive comes first, nothing of
/// the shared one is needed. Without the archive (no GCC, another compiler's triple) the shared one does.
fn static_unwinder() -> Option<PathBuf> {
    let native = env::var("HOST").ok()? == env::var("TARGET").ok()?;
    if !native || env::var("CARGO_CFG_TARGET_ENV").ok()? != "gnu" {
        return None;
    }
    let output = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output().ok()?;
    let archive = String::from_utf8(output.stdout).ok()?;
    // Where there is none, the compiler repeats the name.
    let archive = Path::new(archive.trim()).canonicalize().ok()?;
    archive.parent().map(Path::to_path_buf)
}

/// A `Table` of `src/seccomp.rs` as Rust text.
fn table(policy: &policy::Policy, arch: &str) -> Result<String, Box<dyn Error>> {
    let compiler = compile::Compiler::new(arch)?;
    let (prologue, base) = (program(&compiler.prologue()?), program(&compiler.blocks(&policy.rules)?));
    let mut widenings = String::new();
    for widening in &policy.widenings {
        let blocks = program(&compiler.blocks(&widening.rules)?);
        write!(
            widenings,
            "Widening {{ name: {:?}, why: {:?}, blocks: {blocks} }}, ",
            widening.name, widening.why
        )?;
    }
    Ok(format!("Table {{ prologue: {prologue}, base: {base}, widenings: &[{widenings}] }}"))
}

/// BPF as Rust text: `&[(code, jt, jf, k), ...]`.
fn program(instructions: &[sock_filter]) -> String {
    let list: Vec<String> =
        instructions.iter().map(|i| format!("({:#x}, {}, {}, {:#x})", i.code, i.jt, i.jf, i.k)).collect();
    format!("&[{}]", list.join(", "))
}
