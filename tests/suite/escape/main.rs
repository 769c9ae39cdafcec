//! What an attacker can do who runs code in the worker: system calls are injected into the running, confined
//! process, everything is tried, and nothing may succeed. A table shows the result for the default options,
//! without seccomp (the other layers must hold alone, but for what only a filter can forbid), and for upstream.

#![cfg(target_arch = "x86_64")]

mod attempts;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attempts::{ATTEMPTS, Attempt, Holds};
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknod};
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::frontend::DeviceConfig;
use tests::fuse::Session;
use tests::fuse::wire::ROOT;
use tests::inject::{Died, Injector};
use tests::peers::{Implementation, UpstreamVersion};
use tests::procfs::{OpenFd, open_fds};
use tests::share::{Share, TempDir};

const LIMIT: Duration = Duration::from_secs(300);

/// `PROC_SUPER_MAGIC`
const PROC: i64 = 0x9fa0;

/// A taken-over process, and what it would like to get at.
pub struct Target {
    session: Session,
    injector: Injector,
    share: Share,
    /// A file outside the share, on its file system.
    secret: PathBuf,
    /// A process of the host that is there to be attacked.
    victim: Victim,
    _secret_dir: TempDir,
}

/// A process that waits for its end; killed when dropped.
struct Victim(std::process::Child);

impl Victim {
    fn start() -> Victim {
        // It waits for the end of an input that we hold.
        let child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn();
        Victim(child.expect("start cat"))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The process was killed for it.
    Killed,
    /// It got an error.
    Denied(String),
    /// It worked.
    Succeeded(String),
}

impl Verdict {
    /// Of a call that is a success if it returns no error.
    pub fn of(result: i64) -> Verdict {
        match i32::try_from(-result) {
            Ok(errno @ 1..4096) => Verdict::Denied(format!("{:?}", Errno::from_raw(errno))),
            _ => Verdict::Succeeded(result.to_string()),
        }
    }
}

impl Target {
    fn start(implementation: &Implementation, options: &[&str]) -> Target {
        let share = Share::new();
        share.write("file", "in the share");
        fs::copy("/bin/true", share.join("program")).expect("copy a program");
        // The device of /dev/null, as somebody on the host may have left it there.
        let null = nix::sys::stat::makedev(1, 3);
        mknod(&share.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), null).expect("mknod");
        let secret_dir = TempDir::on_disk();
        let secret = secret_dir.path().join("secret");
        fs::write(&secret, "secret").expect("write outside the share");
        let command = DaemonCommand::serving(implementation, share.path()).args(options);
        let mut session = Session::start(command, DeviceConfig::default());
        session.client().lookup(ROOT, "file").expect("LOOKUP");
        let worker = session.daemon.worker();
        let injector = Injector::attach(worker);
        Target { session, injector, share, secret, victim: Victim::start(), _secret_dir: secret_dir }
    }

    /// The path of the file outside the share.
    pub fn secret(&self) -> &str {
        self.secret.to_str().expect("a plain path")
    }

    /// The pid of a process of the host.
    pub fn victim(&self) -> u64 {
        self.victim.0.id().into()
    }

    /// The process's fds.
    pub fn fds(&self) -> Vec<OpenFd> {
        open_fds(self.injector.pid())
    }

    /// Those that are directories.
    pub fn directories(&self) -> Vec<u64> {
        let is_dir = |fd: &i32| {
            fs::metadata(format!("/proc/{}/fd/{fd}", self.injector.pid())).is_ok_and(|m| m.is_dir())
        };
        let numbers = self.fds().into_iter().map(|fd| fd.number);
        numbers.filter(is_dir).map(|fd| u64::try_from(fd).expect("an open fd")).collect()
    }

    /// One of the share's root directory.
    pub fn share_fd(&self) -> u64 {
        let root = fs::metadata(self.share.path()).expect("the share");
        let fd = self.fds().into_iter().find(|fd| fd.identity == (root.dev(), root.ino()));
        u64::try_from(fd.expect("an fd of the share").number).expect("an open fd")
    }

    /// Whether what the process has just opened is something that it is not to have.
    pub fn leads_out(&self, fd: i64) -> bool {
        let Ok(metadata) = fs::metadata(format!("/proc/{}/fd/{fd}", self.injector.pid())) else {
            return false;
        };
        if self.is_in_own_proc(fd, metadata.dev()) {
            return false;
        }
        let own =
            [format!("/proc/{}/fd", self.injector.pid()), format!("/proc/{}/root", self.injector.pid())];
        let mut allowed: BTreeSet<(u64, u64)> =
            own.iter().filter_map(|path| fs::metadata(path).ok()).map(|m| (m.dev(), m.ino())).collect();
        allowed.extend(identities(self.share.path()));
        !allowed.contains(&(metadata.dev(), metadata.ino()))
    }

    /// A procfs of the process's own pid namespace (upstream has one) tells nothing of the host.
    fn is_in_own_proc(&self, fd: i64, device: u64) -> bool {
        let of_host = fs::metadata("/proc").expect("/proc is mounted").dev();
        let fds = self.fds();
        let opened = fds.iter().find(|open| i64::from(open.number) == fd);
        opened.is_some_and(|open| open.file_system == PROC) && device != of_host
    }

    /// The process, for system calls.
    pub fn process(&mut self) -> &mut Injector {
        &mut self.injector
    }

    /// The daemon's end after the process was let go: what it wrote.
    fn end(self) -> (Option<i32>, String) {
        let Target { session, injector, .. } = self;
        drop(injector);
        let Session { mut daemon, device, .. } = session;
        drop(device);
        let status = daemon.wait(PATIENCE);
        (status.code(), daemon.stderr())
    }
}

fn identities(dir: &Path) -> Vec<(u64, u64)> {
    let entries = fs::read_dir(dir).expect("the share").map(|entry| entry.expect("a listing").path());
    let own = entries.chain([dir.to_owned()]).map(|path| fs::symlink_metadata(path).expect("of the share"));
    own.map(|metadata| (metadata.dev(), metadata.ino())).collect()
}

/// Tries everything, each time on a live process: on a new one where the last did not survive.
fn try_all(implementation: &Implementation, options: &[&str]) -> Vec<Verdict> {
    let mut target: Option<Target> = None;
    let mut verdicts = Vec::new();
    for Attempt { run, .. } in ATTEMPTS {
        let mut now = target.take().unwrap_or_else(|| Target::start(implementation, options));
        now.injector.forget();
        let verdict = match run(&mut now) {
            Ok(verdict) => verdict,
            Err(Died(_)) => Verdict::Killed,
        };
        verdicts.push(verdict);
        if now.injector.is_alive() {
            target = Some(now);
        }
    }
    verdicts
}

fn short(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Killed => "killed".to_owned(),
        Verdict::Denied(errno) => errno.clone(),
        Verdict::Succeeded(what) => format!("SUCCEEDED ({what})"),
    }
}

#[test]
fn a_taken_over_worker_gets_nothing() {
    bounded(LIMIT, || {
        let ours = try_all(&Implementation::Ours, &[]);
        let bare = try_all(&Implementation::Ours, &["--seccomp=none"]);
        let upstream = try_all(&Implementation::Upstream(UpstreamVersion::V1_13_3), &[]);
        println!("{:52} {:24} {:24} upstream 1.13.3", "attempt", "ours", "ours, --seccomp=none");
        for (((attempt, a), b), c) in ATTEMPTS.iter().zip(&ours).zip(&bare).zip(&upstream) {
            println!("{:52} {:24} {:24} {}", attempt.name, short(a), short(b), short(c));
        }
        let succeeded = |verdict: &Verdict| matches!(verdict, Verdict::Succeeded(_));
        for (attempt, verdict) in ATTEMPTS.iter().zip(&ours) {
            assert!(!succeeded(verdict), "{}: {verdict:?}", attempt.name);
        }
        for (attempt, verdict) in ATTEMPTS.iter().zip(&bare) {
            let expected = attempt.holds == Holds::BySeccompAlone;
            assert!(expected || !succeeded(verdict), "{} without seccomp: {verdict:?}", attempt.name);
        }
    });
}

/// What a taken-over worker may try to make the broker believe.
fn broker_messages() -> Vec<(&'static str, Vec<u8>)> {
    use virtiofsd::protocol::bounded::{Bytes, List};
    use virtiofsd::protocol::message::{Admit, TrustedXattr};
    use virtiofsd::protocol::name::TrustedName;
    use virtiofsd::protocol::{FileHandle, SealedHandle, ToBroker, ToWorker, codec};
    fn encoded<M: serde::Serialize>(message: &M) -> Vec<u8> {
        let mut buffer = Box::new([0; codec::MAX_MESSAGE]);
        let len = codec::encode(message, &mut buffer).expect("a message that fits");
        buffer[..len].to_vec()
    }
    let forged = SealedHandle {
        mount: 0,
        handle: FileHandle { handle_type: 1, bytes: Bytes::new(&[1; 8]).expect("eight bytes") },
        mac: [0; 16],
    };
    let handles = List::new(vec![forged.handle.clone()]).expect("one handle");
    let admit = Admit { mount: 1000, handles };
    let trusted = TrustedXattr::Get { name: TrustedName::new(b"trusted.a").expect("a name") };
    let reopen = |handles| ToBroker::Reopen(List::new(handles).expect("at most 253"));
    let attached = encoded(&ToBroker::Attached);
    vec![
        ("garbage", vec![0xa5; 100]),
        ("zeros", vec![0; 4]),
        ("half a message", encoded(&reopen(vec![forged.clone()]))[..10].to_vec()),
        ("a message and more", [&attached[..], &[0]].concat()),
        ("Attached, again", attached),
        ("Confined, again", encoded(&ToBroker::Confined(List::new(Vec::new()).expect("an empty list")))),
        ("Seal without an fd", encoded(&ToBroker::Seal)),
        ("Reopen of a forged handle", encoded(&reopen(vec![forged.clone()]))),
        ("Reopen of many forged handles", encoded(&reopen(vec![forged; 253]))),
        ("Admit on a mount that was never given out", encoded(&ToBroker::Admit(admit))),
        ("TrustedXattr, not enabled", encoded(&ToBroker::TrustedXattr(trusted))),
        ("a reply of the broker's own", encoded(&ToWorker::TrustedXattr(Err(Errno::EPERM.into())))),
    ]
}

#[test]
fn a_worker_that_lies_to_the_broker_is_killed() {
    for (what, bytes) in broker_messages() {
        bounded(LIMIT, || {
            let mut target = Target::start(&Implementation::Ours, &[]);
            let channel = u64::try_from(virtiofsd::protocol::CHANNEL_FD).expect("an fd");
            let at = target.process().put(&bytes);
            // write(2) on the channel is a message; whether we see its result or the kill first is a race.
            let result = target.process().call(libc::SYS_write, &[channel, at, bytes.len() as u64]);
            let sent = i64::try_from(bytes.len()).expect("small");
            assert!(matches!(result, Ok(n) if n == sent) || result.is_err(), "{what}: {result:?}");
            let (status, stderr) = target.end();
            assert_eq!(status, Some(1), "{what}:\n{stderr}");
            assert!(stderr.contains("broke the broker protocol"), "{what}:\n{stderr}");
        });
    }
}
