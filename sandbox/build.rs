//! Compiles `seccomp-policies/` for the target architecture into tables that `src/seccomp.rs` includes.
//!
//! The build fails on a policy that does not parse, names an unknown system call or contradicts itself. The
//! profile (debug, release) has no say in what comes out.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
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
    Ok(())
}

/// A `Table` of `src/seccomp.rs` as Rust text.
fn table(policy: &policy::Policy, arch: &str) -> Result<String, Box<dyn Error>> {
    let compiler = compile::Compiler::new(arch)?;
    let mut base = compiler.prologue()?;
    base.extend(compiler.blocks(&policy.rules)?);
    let mut widenings = String::new();
    for widening in &policy.widenings {
        let blocks = program(&compiler.blocks(&widening.rules)?);
        write!(
            widenings,
            "Widening {{ name: {:?}, why: {:?}, blocks: {blocks} }}, ",
            widening.name, widening.why
        )?;
    }
    Ok(format!("Table {{ base: {}, widenings: &[{widenings}] }}", program(&base)))
}

/// BPF as Rust text: `&[(code, jt, jf, k), ...]`.
fn program(instructions: &[sock_filter]) -> String {
    let list: Vec<String> =
        instructions.iter().map(|i| format!("({:#x}, {}, {}, {:#x})", i.code, i.jt, i.jf, i.k)).collect();
    format!("&[{}]", list.join(", "))
}
