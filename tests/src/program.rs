//! Runs ordinary programs with a time limit. A program that is missing is a failure that names the Debian
//! package, never a skipped test.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::processes::PidFd;

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All it wrote to stdout.
    pub stdout: String,
    /// All it wrote to stderr.
    pub stderr: String,
}

/// A program to be run: a [`Command`] with a time limit and without stdin.
#[derive(Debug)]
pub struct Program {
    command: Command,
    package: &'static str,
    limit: Duration,
}

/// The program `name` of the Debian package `package`, with a time limit of two minutes.
pub fn program(name: impl AsRef<OsStr>, package: &'static str) -> Program {
    let mut command = Command::new(name);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    Program { command, package, limit: Duration::from_secs(120) }
}

impl Program {
    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Program {
        self.command.args(args);
        self
    }

    /// Runs it in this directory.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Program {
        self.command.current_dir(dir);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Program {
        self.command.env(name, value);
        self
    }

    /// Sets the time limit.
    pub fn limit(mut self, limit: Duration) -> Program {
        self.limit = limit;
        self
    }

    /// Runs it to its end; panics when it can't be started or doesn't end in time.
    pub fn run(mut self) -> Finished {
        let name = self.command.get_program().to_string_lossy().into_owned();
        let mut child = self.command.spawn().unwrap_or_else(|e| match e.kind() {
            ErrorKind::NotFound => panic!("{name} is missing: install the package {}", self.package),
            _ => panic!("cannot start {name}: {e}"),
        });
        let pidfd = PidFd::open(child.id()).expect("pidfd of a child");
        let mut out = child.stdout.take().expect("stdout is a pipe");
        let mut err = child.stderr.take().expect("stderr is a pipe");
        let out = thread::spawn(move || read_lossy(&mut out));
        let err = thread::spawn(move || read_lossy(&mut err));
        let ended = pidfd.ended_within(self.limit).expect("poll a pidfd");
        // Also ends what it left running in its group, which would keep the pipes open.
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        let status = child.wait().expect("wait for a child");
        let (stdout, stderr) = (out.join().expect("stdout reader"), err.join().expect("stderr reader"));
        assert!(ended, "{name} did not end within {:?}\nstdout: {stdout}\nstderr: {stderr}", self.limit);
        Finished { status, stdout, stderr }
    }

    /// Runs it and panics, with all it wrote, when it doesn't succeed. Returns its stdout.
    pub fn succeed(self) -> String {
        let what = format!("{:?}", self.command);
        let Finished { status, stdout, stderr } = self.run();
        assert!(status.success(), "{what}: {status}\nstdout: {stdout}\nstderr: {stderr}");
        stdout
    }
}

fn read_lossy(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).expect("read a pipe");
    String::from_utf8_lossy(&bytes).into_owned()
}
