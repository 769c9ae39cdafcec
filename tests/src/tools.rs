//! Test programs of others that no distribution packages: built from the package registry into the cache.
//!
//! `cargo run -p tests --bin fetch-peers` puts them there once.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use crate::paths;
use crate::share::TempDir;

/// A program of the package registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The package, and its program.
    pub name: &'static str,
    /// Exactly this version.
    pub version: &'static str,
}

/// The POSIX file system test suite, in Rust: a result line for each test case.
pub const PJDFSTEST: Tool = Tool { name: "pjdfstest", version: "0.2.2" };
/// The file system exerciser: random reads, writes, maps and truncations of one file, each checked.
pub const FSX: Tool = Tool { name: "fsx", version: "0.3.2" };
/// All of them.
pub const TOOLS: [Tool; 2] = [PJDFSTEST, FSX];

impl Tool {
    fn root(&self) -> PathBuf {
        paths::cache_dir().join(format!("{}-{}", self.name, self.version))
    }

    fn path(&self) -> PathBuf {
        self.root().join("bin").join(self.name)
    }

    /// The path of its program. Panics when it isn't there.
    pub fn binary(&self) -> PathBuf {
        let path = self.path();
        let hint = "run `cargo run -p tests --bin fetch-peers`";
        assert!(path.exists(), "{} is not at {}: {hint}", self.name, path.display());
        path
    }

    /// Builds it into the cache, unless it is there. Needs the network.
    ///
    /// # Errors
    /// When cargo can't be started, or fails.
    pub fn fetch(&self) -> io::Result<PathBuf> {
        if self.path().exists() {
            return Ok(self.path());
        }
        let work = TempDir::on_disk();
        fs::create_dir_all(paths::cache_dir())?;
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // What a user would get, not this workspace's settings.
        cargo.current_dir(work.path()).env("CARGO_TARGET_DIR", work.path().join("build"));
        cargo.env_remove("RUSTFLAGS").args(["install", "--quiet", "--locked", self.name]);
        let status = cargo.args(["--version", self.version, "--root"]).arg(self.root()).status()?;
        if status.success() { Ok(self.path()) } else { Err(io::Error::other(format!("cargo: {status}"))) }
    }
}
