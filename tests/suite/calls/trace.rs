//! A daemon under strace.

use std::collections::BTreeSet;
use std::fs;

use tests::daemon::{Daemon, DaemonCommand, Handover, PATIENCE};
use tests::frontend::DeviceConfig;
use tests::fuse::Session;
use tests::peers::Implementation;
use tests::share::{Share, TempDir};

/// The calls that each process began after its filter was in force, as strace writes them.
#[derive(Debug, Default)]
pub struct Trace {
    pub broker: Vec<String>,
    pub worker: Vec<String>,
    pub follower: Vec<String>,
}

impl Trace {
    /// Adds another daemon's.
    pub fn add(&mut self, other: Trace) {
        self.broker.extend(other.broker);
        self.worker.extend(other.worker);
        self.follower.extend(other.follower);
    }

    /// Reads a log of `strace -f`: the first process is the broker, which has one thread (once it is confined). Of its
    /// children the follower is the one that goes to and fro between mount namespaces, while the worker enters its own
    /// once; all other threads are the worker's.
    fn read(text: &str) -> Trace {
        let mut trace = Trace::default();
        let mut broker = None;
        let enters = |line: &&str| line.contains(" setns(") && line.contains("CLONE_NEWNS");
        let mut entered = text.lines().filter(enters).filter_map(|line| Some(line.split_once(' ')?.0));
        let mut once = BTreeSet::new();
        let follower = entered.find(|thread| !once.insert(*thread));
        let (mut broker_confined, mut worker_confined, mut follower_confined) = (false, false, false);
        for line in text.lines() {
            let (thread, call) = line.split_once(' ').expect("a thread's number and a call");
            let is_broker = *broker.get_or_insert(thread) == thread;
            let (calls, confined) = match is_broker {
                true => (&mut trace.broker, &mut broker_confined),
                false if follower == Some(thread) => (&mut trace.follower, &mut follower_confined),
                false => (&mut trace.worker, &mut worker_confined),
            };
            let call = call.trim_start();
            if call.starts_with("seccomp(SECCOMP_SET_MODE_FILTER") {
                *confined = true;
            } else if *confined && call.starts_with(|c: char| c.is_ascii_lowercase()) {
                calls.push(call.to_owned());
            }
        }
        assert!(broker_confined && worker_confined, "no filters in:\n{text}");
        trace
    }
}

/// A session with a daemon under strace.
pub struct Traced {
    /// `None` once the daemon was left to end by itself.
    pub session: Option<Session>,
    log: TempDir,
}

impl Traced {
    /// Starts it.
    pub fn start(share: &Share, options: &[&str], config: DeviceConfig, flags: u64) -> Traced {
        let log = TempDir::short();
        let session = Session::start_with(command(share, options, &log), config, flags);
        Traced { session: Some(session), log }
    }

    /// The guest's session.
    pub fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("it still serves")
    }

    /// Ends it in the orderly way, if nobody has ended it; its calls.
    pub fn finish(self) -> Trace {
        if let Some(session) = self.session {
            let (status, stderr) = session.finish();
            assert!(status.success(), "{status}\n{stderr}");
        }
        read(&self.log)
    }

    /// The daemon ends by itself, with status 1.
    pub fn fails(&mut self, act: impl FnOnce(&mut Session)) {
        let mut session = self.session.take().expect("it still serves");
        act(&mut session);
        let status = session.daemon.wait(PATIENCE);
        assert_eq!(status.code(), Some(1), "{}", session.daemon.stderr());
    }
}

/// A daemon under strace that nobody has connected to, and where its log goes.
pub fn daemon(share: &Share, options: &[&str]) -> (Daemon, TempDir) {
    let log = TempDir::short();
    (command(share, options, &log).start(), log)
}

/// The calls of a daemon that has ended.
pub fn read(log: &TempDir) -> Trace {
    Trace::read(&fs::read_to_string(log.path().join("trace")).expect("strace's log"))
}

fn command(share: &Share, options: &[&str], log: &TempDir) -> DaemonCommand {
    let ours = Implementation::Ours;
    let log = log.path().join("trace");
    DaemonCommand::new("strace")
        .args(["-f", "-qq", "-s", "0", "-o"])
        .args([log.as_os_str(), ours.binary().as_os_str()])
        .args(ours.share_arguments(share.path()))
        .args(options)
        // So that it has a socket to remove.
        .handover(Handover::Path)
}
