//! The worker's part: a line of text is a command, and gets a line as reply.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use sandbox::mounts::{ShareAttrs, clone_own_fd_directory, clone_share, enter_own_namespace};
use virtiofsd::protocol::message::{
    DeviceKind, Layer, LayerReport, LayerState, MakeDevice, Permissions, ShareKind, ShareMount, TrustedXattr,
    XattrSetMode,
};
use virtiofsd::protocol::name::{EntryName, TrustedName};
use virtiofsd::protocol::{CHANNEL_FD, LOG_FD, bounded::Bytes};
use virtiofsd::worker::broker_client::{BrokerClient, BrokerClientError, StartFds};

const PATH: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

struct Worker {
    broker: BrokerClient,
    fds: StartFds,
    start: String,
}

pub fn main() -> ExitCode {
    // SAFETY: the broker started this process with these two fds, and nobody here owns them yet.
    let (log, channel) = unsafe { (OwnedFd::from_raw_fd(LOG_FD), OwnedFd::from_raw_fd(CHANNEL_FD)) };
    let log: &'static OwnedFd = Box::leak(Box::new(log));
    virtiofsd::worker::log::init(log.as_fd()).unwrap();
    let (broker, start, mut fds) = BrokerClient::start(channel).unwrap();
    virtiofsd::worker::log::set_level(start.log_level);
    let namespaces = start.sandbox == virtiofsd::config::SandboxMode::Namespace;
    if start.share_mount == ShareMount::Host && namespaces && start.share == ShareKind::Directory {
        let here = open(".", PATH, Mode::empty()).unwrap();
        enter_own_namespace().unwrap();
        assert_eq!(fstat(&here).unwrap().st_ino, fstat(&fds.share).unwrap().st_ino);
        fds.share = clone_share(here.as_fd(), ShareAttrs::default(), None).unwrap();
        fds.fd_directory = clone_own_fd_directory().unwrap();
    }
    let report = LayerReport::new(Layer::Landlock, LayerState::Missing, "this is a \x1b[31mtest\n");
    broker.confined(vec![report]).unwrap();
    let start = format!("{:?} {:?} {:?} {:?}", start.share, start.share_mount, start.ids, start.services);
    let listener = UnixListener::from(fds.listener.try_clone().unwrap());
    let (connection, _) = listener.accept().unwrap();
    broker.attached().unwrap();
    let worker = Worker { broker, fds, start };
    let mut reply_to = connection.try_clone().unwrap();
    for line in BufReader::new(connection).lines() {
        let line = line.unwrap();
        let reply = worker.obey(&line).unwrap_or_else(|error| format!("error: {error}"));
        reply_to.write_all(format!("{reply}\n").as_bytes()).unwrap();
    }
    ExitCode::SUCCESS
}

impl Worker {
    fn obey(&self, line: &str) -> Result<String, Box<dyn std::error::Error>> {
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "start" => Ok(self.start.clone()),
            "reopen" => self.reopen(argument),
            "deleted" => self.deleted(argument),
            "parent" => {
                let up = openat(&self.fds.share, "..", PATH, Mode::empty())?;
                Ok((fstat(&up)?.st_ino == fstat(&self.fds.share)?.st_ino).to_string())
            }
            "read" => self.read(argument),
            "device" => self.device(argument),
            "xattr" => self.xattr(argument),
            "log" => {
                log::info!("{argument}\x1b[2J\nnext");
                Ok(String::new())
            }
            "raw-log" => {
                nix::unistd::write(std::io::stderr(), format!("{argument}\r\x07\n").as_bytes())?;
                Ok(String::new())
            }
            "garbage" => {
                // SAFETY: the channel is open for the life of the process.
                let channel = unsafe { std::os::fd::BorrowedFd::borrow_raw(CHANNEL_FD) };
                nix::sys::socket::send(channel.as_raw_fd(), b"garbage", nix::sys::socket::MsgFlags::empty())?;
                // The broker kills us here.
                std::thread::park();
                Ok("still alive".to_owned())
            }
            "forge" => {
                let mut sealed = self.seal(".")?;
                sealed.mac[0] ^= 1;
                Ok(format!("{:?}", self.broker.reopen(&sealed)))
            }
            "die" => die(argument),
            "panic" => panic!("{argument}"),
            _ => Err("no such command".into()),
        }
    }

    fn seal(&self, path: &str) -> Result<virtiofsd::protocol::SealedHandle, Box<dyn std::error::Error>> {
        let fd = openat(&self.fds.share, path, PATH, Mode::empty())?;
        let mut results = self.broker.seal(&[fd.as_fd()])?;
        let result = results.pop().ok_or("no result")?;
        Ok(result.map_err(BrokerClientError::Refused)?)
    }

    fn reopen(&self, path: &str) -> Result<String, Box<dyn std::error::Error>> {
        let want = fstat(openat(&self.fds.share, path, PATH, Mode::empty())?)?;
        let got = fstat(self.broker.reopen(&self.seal(path)?)?)?;
        Ok(((want.st_dev, want.st_ino, want.st_uid) == (got.st_dev, got.st_ino, got.st_uid)).to_string())
    }

    fn deleted(&self, path: &str) -> Result<String, Box<dyn std::error::Error>> {
        let sealed = self.seal(path)?;
        nix::unistd::unlinkat(&self.fds.share, path, nix::unistd::UnlinkatFlags::NoRemoveDir)?;
        Ok(format!("{}", self.broker.reopen(&sealed).unwrap_err()))
    }

    /// Opens for data what an `O_PATH` fd names, as the worker does: through its own fd directory.
    fn read(&self, path: &str) -> Result<String, Box<dyn std::error::Error>> {
        let fd = openat(&self.fds.share, path, PATH, Mode::empty())?;
        let name = fd.as_raw_fd().to_string();
        let file =
            openat(&self.fds.fd_directory, name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut File::from(file), &mut text)?;
        Ok(format!("{} {text}", fstat(&fd)?.st_uid))
    }

    fn device(&self, name: &str) -> Result<String, Box<dyn std::error::Error>> {
        let directory = openat(&self.fds.share, ".", PATH, Mode::empty())?;
        let device = MakeDevice {
            name: EntryName::new(name.as_bytes())?,
            kind: DeviceKind::Block,
            permissions: Permissions::of_mode(0o666),
            umask: Permissions::of_mode(0o077),
            major: 7,
            minor: 300,
            uid: 0,
            gid: 3,
        };
        self.broker.make_device(directory.as_fd(), device)?;
        Ok("made".to_owned())
    }

    fn xattr(&self, value: &str) -> Result<String, Box<dyn std::error::Error>> {
        let fd = openat(&self.fds.share, "file", PATH, Mode::empty())?;
        let (name, value) = (TrustedName::new(b"trusted.test")?, Bytes::new(value.as_bytes())?);
        let set = TrustedXattr::Set { name: name.clone(), value, mode: XattrSetMode::Create };
        self.broker.trusted_xattr(fd.as_fd(), set)?;
        let value = self.broker.trusted_xattr(fd.as_fd(), TrustedXattr::Get { name: name.clone() })?;
        let names = self.broker.trusted_xattr(fd.as_fd(), TrustedXattr::List)?;
        self.broker.trusted_xattr(fd.as_fd(), TrustedXattr::Remove { name })?;
        Ok(format!("{value:?} {names:?}"))
    }
}

/// Dies as a real worker would: as process 1 of its pid namespace it gets no signal that it has no handler for, but the
/// kernel's own, and SIGKILL from outside.
fn die(how: &str) -> ! {
    match how {
        "SIGBUS" => {
            let file = tempfile_in_memory();
            // SAFETY: a new mapping of one page, of which nothing is ever backed by the empty file.
            let page = unsafe {
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
            };
            // SAFETY: the page is mapped; that reading it raises SIGBUS is what this is for.
            let byte = unsafe { page.cast::<u8>().read_volatile() };
            unreachable!("read {byte}");
        }
        "SIGSYS" => {
            sandbox::capabilities::forbid_new_privileges().unwrap();
            sandbox::seccomp::apply(sandbox::seccomp::Policy::Worker, sandbox::seccomp::Mode::Kill, &[])
                .unwrap();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0");
            unreachable!("made {socket:?}");
        }
        "SIGABRT" => std::process::abort(),
        _ => {
            // The kernel's hand is played by a resource limit: SIGKILL when CPU time is used up.
            let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: `limit` is a live rlimit.
            unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const limit) };
            loop {
                std::hint::spin_loop();
            }
        }
    }
}

fn tempfile_in_memory() -> OwnedFd {
    nix::sys::memfd::memfd_create(c"empty", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap()
}
