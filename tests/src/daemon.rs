//! Starts a vhost-user-fs daemon by its command line, connects to it, and ends it.
//!
//! Nothing here sleeps: with [`Handover::Fd`] the listening socket is ours, so that connecting succeeds
//! before the daemon has even started; with [`Handover::Path`] the socket's directory is watched; the end of
//! the process is seen through its pidfd, and the end of all that it started through the stderr pipe, which
//! stays open as long as one of them lives.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::peers::Implementation;
use crate::processes::{PidFd, descendants};
use crate::share::TempDir;

/// How long anything that a daemon has to do at once may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How the daemon gets its listening socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// `--fd`: we listen and pass the socket on.
    #[default]
    Fd,
    /// `--socket-path`: the daemon makes it.
    Path,
    /// Not at all: the command line has what it needs, or is meant to be refused.
    None,
}

/// A daemon to be started.
#[derive(Debug)]
pub struct DaemonCommand {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    handover: Handover,
}

impl DaemonCommand {
    /// A daemon at this path, without arguments, that gets its socket by `--fd`.
    pub fn new(program: impl Into<PathBuf>) -> DaemonCommand {
        DaemonCommand { program: program.into(), args: Vec::new(), env: Vec::new(), handover: Handover::Fd }
    }

    /// A daemon that serves `dir`, with the default options otherwise.
    pub fn serving(implementation: &Implementation, dir: &Path) -> DaemonCommand {
        DaemonCommand::new(implementation.binary()).args(implementation.share_arguments(dir))
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> DaemonCommand {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> DaemonCommand {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Chooses how the socket is handed over.
    pub fn handover(mut self, handover: Handover) -> DaemonCommand {
        self.handover = handover;
        self
    }

    /// Starts it. It dies with the thread that calls this, at the latest.
    pub fn start(self) -> Daemon {
        let runtime = TempDir::short();
        let socket = runtime.path().join("socket");
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let listener = match self.handover {
            Handover::Fd => {
                let listener = UnixListener::bind(&socket).expect("listen in an own directory");
                command.arg(format!("--fd={}", listener.as_raw_fd()));
                Some(listener)
            }
            Handover::Path => {
                // With "=", which the C daemon needs and the others take.
                let mut option = OsString::from("--socket-path=");
                option.push(&socket);
                command.arg(option);
                None
            }
            Handover::None => None,
        };
        let inherited = listener.as_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: between fork and exec this only makes system calls; it allocates nothing and takes no
        // lock. `inherited` is open in the child, since `listener` lives until after the spawn.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // A session, and so a process group, of its own, as under libvirt or systemd: the scheduler's
                // automatic groups treat all daemons alike then.
                libc::setsid();
                match inherited {
                    Some(fd) if libc::fcntl(fd, libc::F_SETFD, 0) != 0 => Err(io::Error::last_os_error()),
                    _ => Ok(()),
                }
            });
        }
        let mut child =
            command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", self.program.display()));
        let pidfd = PidFd::open(child.id()).expect("pidfd of a child");
        let output = Output::collect(child.stderr.take().expect("stderr is a pipe"));
        Daemon { child, pidfd, output, socket, handover: self.handover, ended: None, _runtime: runtime }
    }
}

/// A running daemon; killed, with all that it started, when dropped. If a test panics, its stderr is shown.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pidfd: PidFd,
    output: Output,
    socket: PathBuf,
    handover: Handover,
    ended: Option<ExitStatus>,
    _runtime: TempDir,
}

impl Daemon {
    /// The pid of the process that was started (of our daemon: the broker's).
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The pids of all processes that it started and that live, nearest first.
    pub fn descendants(&self) -> Vec<i32> {
        descendants(self.pid())
    }

    /// The pids of the processes that it started under this name (`argv[0]`).
    pub fn started_as(&self, name: &str) -> Vec<i32> {
        let named = |pid: &i32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).next() == Some(name.as_bytes())
        };
        self.descendants().into_iter().filter(named).collect()
    }

    /// The pid of the process that serves the guest: our daemon's worker, or another's innermost process.
    pub fn worker(&self) -> i32 {
        let worker = self.started_as("virtiofsd-worker").first().copied();
        worker.or_else(|| self.descendants().last().copied()).expect("a process that serves")
    }

    /// The path of its listening socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.output.text()
    }

    /// Waits until this text is so many times in what [`Daemon::stderr`] gives: what a process logs comes a little after
    /// what it does. Panics when it does not come.
    pub fn wait_for_stderr(&self, text: &str, times: usize) {
        let said = self.output.wait_for(text, times, PATIENCE);
        assert!(said, "not {times} times {text:?} in:\n{}", self.stderr());
    }

    /// Connects to it. A daemon serves one connection.
    pub fn connect(&self) -> UnixStream {
        match self.handover {
            Handover::Fd => UnixStream::connect(&self.socket).expect("connect to a listening socket"),
            Handover::Path => self.connect_when_listening(),
            Handover::None => panic!("this daemon was given no socket"),
        }
    }

    /// Tries to connect whenever something happens in the socket's directory, until the daemon ends.
    fn connect_when_listening(&self) -> UnixStream {
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
        let dir = self.socket.parent().expect("the socket lies in a directory");
        watch.add_watch(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB).expect("watch a directory");
        let end = Instant::now() + PATIENCE;
        loop {
            let error = match UnixStream::connect(&self.socket) {
                Ok(stream) => return stream,
                Err(e) => e,
            };
            // Nothing tells when a bound socket begins to listen: look again each millisecond then.
            let refused = error.kind() == io::ErrorKind::ConnectionRefused;
            let pause = if refused { PollTimeout::from(1u8) } else { PollTimeout::from(1000u16) };
            let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, pause).expect("poll inotify");
            let _ = watch.read_events();
            assert!(!self.has_ended(), "the daemon ended before it listened; its stderr:\n{}", self.stderr());
            assert!(Instant::now() < end, "cannot connect to {}: {error}", self.socket.display());
        }
    }

    /// Whether the process that was started has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some() || self.pidfd.ended_within(Duration::ZERO).expect("poll a pidfd")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.pidfd.signal(signal).expect("signal a child");
    }

    /// Waits for its end (that of the process that was started), and for that of all that it started.
    /// Panics after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        let ended = self.pidfd.ended_within(limit).expect("poll a pidfd");
        assert!(ended, "the daemon still runs after {limit:?}; its stderr:\n{}", self.stderr());
        let status = self.child.wait().expect("wait for a child");
        self.ended = Some(status);
        let all_gone = self.output.wait_for_end(limit);
        assert!(all_gone, "the daemon has ended ({status}), a process that it started has not");
        status
    }

    /// Waits for the end and returns what it wrote to stdout: for options such as `--print-capabilities`.
    pub fn wait_with_stdout(&mut self, limit: Duration) -> (ExitStatus, String) {
        let status = self.wait(limit);
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text).expect("read the daemon's stdout");
        }
        (status, text)
    }

    /// Sends `signal` and waits, at most [`PATIENCE`].
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait(PATIENCE)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let left = self.descendants();
            let ends: Vec<_> = left.iter().filter_map(|pid| PidFd::open(*pid as u32).ok()).collect();
            // The group's id can't be another's: its leader is our child, not reaped yet.
            let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
            for pid in left {
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = self.child.wait();
            // A killed process is there until its parent, or whoever inherits it, has seen its end.
            for end in ends {
                let _ = end.ended_within(PATIENCE);
            }
            if !self.output.wait_for_end(PATIENCE) {
                eprintln!("a process that daemon {} started survived a SIGKILL", self.pid());
            }
        }
        if thread::panicking() {
            eprintln!("--- stderr of the daemon {}:\n{}---", self.pid(), self.stderr());
        }
    }
}

/// Collects what is written to a pipe, in a thread that ends with the pipe's last writer.
#[derive(Debug)]
struct Output(Arc<(Mutex<Collected>, Condvar)>);

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

/// More than this from one daemon is dropped.
const MAX_OUTPUT: usize = 16 << 20;

impl Output {
    fn collect(mut from: ChildStderr) -> Output {
        let shared = Arc::new((Mutex::new(Collected::default()), Condvar::new()));
        let writer = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = from.read(&mut buffer).unwrap_or(0);
                let mut collected = writer.0.lock().expect("no panic while it is held");
                if count == 0 {
                    collected.ended = true;
                    writer.1.notify_all();
                    return;
                }
                if collected.bytes.len() < MAX_OUTPUT {
                    collected.bytes.extend_from_slice(&buffer[..count]);
                    writer.1.notify_all();
                }
            }
        });
        Output(shared)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().expect("no panic while it is held").bytes).into_owned()
    }

    fn wait_for(&self, text: &str, times: usize, limit: Duration) -> bool {
        let said = |c: &Collected| String::from_utf8_lossy(&c.bytes).matches(text).count() >= times;
        let guard = self.0.0.lock().expect("no panic while it is held");
        let (guard, _) =
            self.0.1.wait_timeout_while(guard, limit, |c| !c.ended && !said(c)).expect("as above");
        said(&guard)
    }

    fn wait_for_end(&self, limit: Duration) -> bool {
        let guard = self.0.0.lock().expect("no panic while it is held");
        let (guard, _) = self.0.1.wait_timeout_while(guard, limit, |c| !c.ended).expect("as above");
        guard.ended
    }
}
