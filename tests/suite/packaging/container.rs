//! A clean Debian system with systemd as init, booted in namespaces of its own by `packaging/test/container`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::paths;
use tests::program::{Finished, Program, program};
use tests::share::TempDir;

/// From the start of init until it takes commands.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// From the end of a process until systemd has taken notice.
const STATE_LIMIT: Duration = Duration::from_secs(30);
/// The download of a Debian root, the first time.
const ROOT_LIMIT: Duration = Duration::from_secs(900);

/// The files of a clean Debian system, unpacked anew.
pub fn clean_root() -> TempDir {
    let script = paths::workspace().join("packaging/test/root");
    let tar = program(script, "mmdebstrap")
        .env("VIRTIOFSD_TEST_CACHE", paths::cache_dir())
        .limit(ROOT_LIMIT)
        .succeed();
    let root = TempDir::on_disk();
    program("tar", "tar").args(["-xpf", tar.trim(), "-C"]).args([root.path()]).succeed();
    root
}

/// A running system. Dropping it ends it and removes its files.
pub struct Container {
    process: Child,
    init: u32,
    root: TempDir,
}

impl Container {
    /// Boots a new one and waits until systemd has started all it has to.
    pub fn boot() -> Container {
        let root = clean_root();
        let mut process = Command::new(paths::workspace().join("packaging/test/container"))
            .arg(root.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start packaging/test/container");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let init = line.trim().parse().unwrap_or_else(|_| panic!("the container says, not a pid: {line:?}"));
        let container = Container { process, init, root };
        let start = Instant::now();
        // Before systemd listens, asking it fails at once.
        while container.run("systemctl is-system-running --wait").stdout.trim() != "running" {
            assert!(start.elapsed() < BOOT_LIMIT, "{:?}", container.run("systemctl --failed"));
        }
        container
    }

    /// Its file system, but for what is mounted in it.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A path of its own, as this side sees it; short enough for a socket.
    pub fn inside(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.init)).join(path)
    }

    fn program(&self, script: &str) -> Program {
        let init = self.init.to_string();
        let environment = [
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        ];
        program("nsenter", "util-linux")
            .args(["-t", &init, "-m", "-p", "-u", "-i", "-n", "-C"])
            .args(environment)
            .args(["sh", "-euc", script])
    }

    /// Runs a shell script in it, as root.
    pub fn run(&self, script: &str) -> Finished {
        self.program(script).run()
    }

    /// Runs one that has to succeed; what it wrote to stdout, without white space at the end.
    pub fn check(&self, script: &str) -> String {
        self.program(script).succeed().trim_end().to_owned()
    }

    /// Waits until a unit is in this state.
    pub fn await_state(&self, unit: &str, state: &str) {
        let start = Instant::now();
        while self.run(&format!("systemctl is-active {unit}")).stdout.trim() != state {
            assert!(
                start.elapsed() < STATE_LIMIT,
                "{}",
                self.run(&format!("systemctl status {unit}")).stdout
            );
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The script ends all that runs in the container, and its cgroups; its directory may then go.
        let pid = Pid::from_raw(self.process.id().cast_signed());
        if kill(pid, Signal::SIGTERM).and(Ok(self.process.wait())).is_err() {
            eprintln!("the container {} could not be ended", self.root.path().display());
        }
        let _ = fs::remove_file(self.root.path().join("srv/package.deb"));
    }
}
