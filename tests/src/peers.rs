//! The daemons that the suites and benchmarks can run: ours, and the peers it is compared with.
//!
//! `cargo run -p tests --bin fetch-peers` puts the peers into the cache ([`paths::cache_dir`]) once.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::paths;
use crate::share::TempDir;

/// Chooses the daemon that the suites run: see [`Implementation::from_str`]. Ours when unset.
pub const DAEMON_VARIABLE: &str = "VIRTIOFSD_TEST_DAEMON";

/// Which daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// This workspace's, built with the profile of this executable.
    Ours,
    /// Upstream virtiofsd of this version.
    Upstream(UpstreamVersion),
    /// The C virtiofsd that QEMU carried until 7.2.
    C,
    /// Some other binary with upstream's command line.
    Binary(PathBuf),
}

/// The upstream releases that we compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamVersion {
    /// 1.13.3
    V1_13_3,
    /// 1.14.0
    V1_14_0,
}

impl UpstreamVersion {
    /// As in the package registry.
    pub fn number(self) -> &'static str {
        match self {
            UpstreamVersion::V1_13_3 => "1.13.3",
            UpstreamVersion::V1_14_0 => "1.14.0",
        }
    }
}

/// All peers, in the order of benchmark tables.
pub const PEERS: [Implementation; 3] = [
    Implementation::Upstream(UpstreamVersion::V1_13_3),
    Implementation::Upstream(UpstreamVersion::V1_14_0),
    Implementation::C,
];

impl FromStr for Implementation {
    type Err = String;

    /// `ours`, `1.13.3`, `1.14.0`, `c`, or a path with a slash in it.
    fn from_str(text: &str) -> Result<Implementation, String> {
        match text {
            "ours" => Ok(Implementation::Ours),
            "1.13.3" => Ok(Implementation::Upstream(UpstreamVersion::V1_13_3)),
            "1.14.0" => Ok(Implementation::Upstream(UpstreamVersion::V1_14_0)),
            "c" => Ok(Implementation::C),
            path if path.contains('/') => Ok(Implementation::Binary(path.into())),
            _ => Err(format!("{text:?} is none of ours, 1.13.3, 1.14.0, c, or a path")),
        }
    }
}

impl Implementation {
    /// The one that `$VIRTIOFSD_TEST_DAEMON` names; ours when it is unset.
    pub fn under_test() -> Implementation {
        match env::var(DAEMON_VARIABLE) {
            Ok(text) => text.parse().unwrap_or_else(|e| panic!("{DAEMON_VARIABLE}: {e}")),
            Err(_) => Implementation::Ours,
        }
    }

    /// A short name for messages and tables.
    pub fn name(&self) -> String {
        match self {
            Implementation::Ours => "ours".into(),
            Implementation::Upstream(version) => format!("virtiofsd {}", version.number()),
            Implementation::C => "C virtiofsd".into(),
            Implementation::Binary(path) => path.display().to_string(),
        }
    }

    /// The path of its binary; ours is built first if that is needed. Panics when it isn't there.
    pub fn binary(&self) -> PathBuf {
        match self {
            Implementation::Ours => ours().to_owned(),
            Implementation::Binary(path) => path.clone(),
            peer => {
                let path = cached(peer);
                let hint = "run `cargo run -p tests --bin fetch-peers`";
                assert!(path.exists(), "{} is not at {}: {hint}", peer.name(), path.display());
                path
            }
        }
    }

    /// Arguments that make it serve `dir`, in its own dialect.
    pub fn share_arguments(&self, dir: &Path) -> Vec<OsString> {
        match self {
            Implementation::C => {
                let mut source = OsString::from("source=");
                source.push(dir);
                vec!["-o".into(), source]
            }
            _ => vec!["--shared-dir".into(), dir.into()],
        }
    }

    /// Arguments for `queues` request queues besides the high-priority one. Only ours has more than one.
    pub fn queue_arguments(&self, queues: u16) -> Vec<OsString> {
        match self {
            Implementation::Ours => vec![format!("--num-request-queues={queues}").into()],
            _ => Vec::new(),
        }
    }

    /// How many request queues it can serve, at most `wanted`.
    pub fn request_queues(&self, wanted: u16) -> u16 {
        if *self == Implementation::Ours { wanted } else { 1 }
    }

    /// Arguments that turn extended attributes on.
    pub fn xattr_arguments(&self) -> Vec<OsString> {
        match self {
            Implementation::C => vec!["-o".into(), "xattr".into()],
            _ => vec!["--xattr".into()],
        }
    }
}

/// Our binary, in the profile of this executable. Cargo is asked to build it, once for each test process, so
/// that it is never a stale one; that takes a moment when there is nothing to do.
fn ours() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let profile = paths::profile_dir();
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(paths::workspace()).args(["build", "--quiet", "--package=virtiofsd"]);
        cargo.arg("--bin=virtiofsd").arg("--target-dir").arg(paths::target_dir());
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.status().unwrap_or_else(|e| panic!("cannot start cargo: {e}"));
        assert!(status.success(), "cargo build of virtiofsd: {status}");
        profile.join("virtiofsd")
    })
}

/// Where a peer's binary is after it was fetched.
fn cached(peer: &Implementation) -> PathBuf {
    match peer {
        Implementation::Upstream(version) => {
            paths::cache_dir().join(format!("virtiofsd-{}/bin/virtiofsd", version.number()))
        }
        Implementation::C => paths::cache_dir().join("virtiofsd-c/usr/lib/qemu/virtiofsd"),
        Implementation::Ours | Implementation::Binary(_) => panic!("not a peer"),
    }
}

/// Fetches a peer into the cache, unless it is there. Needs the network, and for upstream the packages
/// `libcap-ng-dev` and `libseccomp-dev`, for the C daemon Debian 12's `apt-get`.
pub fn fetch(peer: &Implementation) -> io::Result<PathBuf> {
    let binary = cached(peer);
    if binary.exists() {
        return Ok(binary);
    }
    let work = TempDir::on_disk();
    let cache = paths::cache_dir();
    fs::create_dir_all(&cache)?;
    match peer {
        Implementation::Upstream(version) => fetch_upstream(*version, work.path(), &cache)?,
        _ => fetch_c(work.path(), &cache)?,
    }
    if !binary.exists() {
        return Err(io::Error::other(format!("{} was fetched but is not there", binary.display())));
    }
    Ok(binary)
}

fn fetch_upstream(version: UpstreamVersion, work: &Path, cache: &Path) -> io::Result<()> {
    let root = cache.join(format!("virtiofsd-{}", version.number()));
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Not our own workspace's toolchain settings or flags: what a user would get.
    cargo.current_dir(work).env("CARGO_TARGET_DIR", work.join("build")).env_remove("RUSTFLAGS");
    cargo
        .args(["install", "--quiet", "--locked", "virtiofsd", "--version", version.number(), "--root"])
        .arg(root);
    succeed(&mut cargo)
}

fn fetch_c(work: &Path, cache: &Path) -> io::Result<()> {
    succeed(Command::new("apt-get").current_dir(work).args(["download", "qemu-system-common=1:7.2*"]))?;
    let package =
        fs::read_dir(work)?.next().ok_or_else(|| io::Error::other("apt-get downloaded nothing"))??;
    // Unpacked beside its place and then renamed, so that an interrupted run leaves no half of it.
    let unpacked = work.join("unpacked");
    succeed(Command::new("dpkg").arg("-x").arg(package.path()).arg(&unpacked))?;
    let place = cache.join("virtiofsd-c");
    let part = cache.join("virtiofsd-c.part");
    fs::create_dir_all(part.join("usr/lib/qemu"))?;
    fs::copy(unpacked.join("usr/lib/qemu/virtiofsd"), part.join("usr/lib/qemu/virtiofsd"))?;
    fs::rename(part, place)
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}
