//! The daemon's part, and the test's hold on it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use virtiofsd::config::Environment;
use virtiofsd::config::cli::{self, Action};

/// What the log says when a front end may connect.
const READY: &str = "Waiting for vhost-user socket connection";

pub fn broker_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = std::iter::once(OsString::from("virtiofsd")).chain(args);
    let (config, warnings) = match cli::parse(args, &Environment::of_this_process()) {
        Ok(Action::Run(config, warnings)) => (config, warnings),
        Ok(_) => panic!("not a command line that serves"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match virtiofsd::broker::run(&config, warnings, virtiofsd::broker::Ahead::begin()) {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) => {
            eprintln!("fatal: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A directory with a share, and this program where every user can execute it.
pub struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let place = Self { directory };
        for name in ["share", "share/dir", "run"] {
            fs::create_dir(place.path(name)).unwrap();
        }
        fs::write(place.path("share/file"), "content").unwrap();
        chown(place.path("share/file"), Some(1234), Some(1234)).unwrap();
        fs::copy(std::env::current_exe().unwrap(), place.path("program")).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/vhost.sock")
    }

    /// What the daemon has left beside its socket.
    pub fn leftovers(&self) -> Vec<OsString> {
        fs::read_dir(self.path("run")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("program"));
        command.arg("broker").args(args).stdin(Stdio::null()).stderr(Stdio::piped()).env_remove("RUST_LOG");
        command.env_remove("RUST_BACKTRACE");
        command
    }

    /// Starts the daemon on this place's share and socket.
    pub fn start(&self, args: &[&str]) -> Daemon {
        Daemon::wait_ready(self.served(args), self.socket())
    }

    pub fn served(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.arg("--socket-path").arg(self.socket()).arg("--shared-dir").arg(self.path("share"));
        command
    }

    /// The same as an ordinary user, to whom the share and the socket's directory belong.
    pub fn start_as_user(&self, args: &[&str]) -> Daemon {
        const USER: u32 = 54_321;
        for name in ["share", "share/dir", "share/file", "run"] {
            chown(self.path(name), Some(USER), Some(USER)).unwrap();
        }
        let mut command = self.served(args);
        command.uid(USER).gid(USER);
        Daemon::wait_ready(command, self.socket())
    }
}

/// How a daemon ended.
pub struct End {
    pub code: Option<i32>,
    pub log: String,
}

/// A running daemon that waits for its front end.
pub struct Daemon {
    process: Child,
    stderr: BufReader<ChildStderr>,
    log: String,
    socket: PathBuf,
}

impl Daemon {
    pub fn wait_ready(mut command: Command, socket: PathBuf) -> Self {
        let mut process = command.spawn().unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let mut daemon = Self { process, stderr, log: String::new(), socket };
        while !daemon.log.contains(READY) {
            let read = daemon.stderr.read_line(&mut daemon.log).unwrap();
            assert_ne!(read, 0, "the daemon ended: {}", daemon.log);
        }
        daemon
    }

    /// What it has logged up to when it was ready.
    pub fn log(&self) -> &str {
        &self.log
    }

    pub fn connect(&self) -> FrontEnd {
        let stream = UnixStream::connect(&self.socket).unwrap();
        FrontEnd { replies: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn worker_pid(&self) -> u32 {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap();
        children.trim().parse().unwrap_or_else(|_| panic!("not one child: {children}"))
    }

    /// A descriptor of the worker's process, readable when it has ended.
    pub fn worker_process(&self) -> OwnedFd {
        // SAFETY: pidfd_open takes two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.worker_pid(), 0) };
        let fd = i32::try_from(nix::errno::Errno::result(fd).unwrap()).unwrap();
        // SAFETY: the system call succeeded and returned a new fd, which nobody else owns.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    pub fn end(mut self) -> End {
        std::io::Read::read_to_string(&mut self.stderr, &mut self.log).unwrap();
        let code = self.process.wait().unwrap().code();
        End { code, log: std::mem::take(&mut self.log) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Of a test that has failed; killing one that has ended is an error, and no matter.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub struct FrontEnd {
    stream: UnixStream,
    replies: BufReader<UnixStream>,
}

impl FrontEnd {
    pub fn ask(&mut self, command: &str) -> String {
        self.stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut reply = String::new();
        // A worker that was killed leaves an empty reply, or a reset.
        let _ = self.replies.read_line(&mut reply);
        reply.trim_end().to_owned()
    }
}

/// `/proc/PID/status` by field.
pub fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().replace('\t', " "))).collect()
}

/// What the process's namespace of this kind is.
pub fn namespace(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns").join(kind)).unwrap()
}
