//! Whatever a front end sends over the socket, with whatever fds, the vhost-user back end of a whole device answers or
//! ends the connection: no panic, no hang, and every answer is a reply as the protocol has them.
//!
//! Input: records of 4 bytes and a payload: what fds come with it, the request, its flags, the payload's length. Guest
//! memory has a virtqueue of two good requests and a broken one at its start, and every kick fd is kicked.
#![no_main]

use std::ffi::OsString;
use std::fs::{DirEntry, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use libfuzzer_sys::fuzz_target;
use sandbox::credentials::Baseline;
use vhost::vhost_user::Listener;
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use virtiofsd::config::cli::{self, Action};
use virtiofsd::config::{Environment, WorkerConfig};
use virtiofsd::protocol::Services;
use virtiofsd::protocol::metrics::{MetricsMemory, Region};
use virtiofsd::worker::device::{AtomicMemory, Device, Memory};
use virtiofsd::worker::fs::{Bounds, FileSystem, Resources};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// More messages than this of one input are not sent: their replies fit the socket's buffer, so that nobody has to
/// read while we write.
const MAX_MESSAGES: usize = 64;
/// Bytes of a header.
const HEADER: usize = 12;
/// The version that every message has.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const ADD_MEM_REG: u8 = 37;
const SET_DEVICE_STATE_FD: u8 = 42;

/// Larger than anything that can be mapped: no access to memory that the daemon took can be beyond its file. (SIGBUS is
/// for `tests/suite/hostile_vmm`: it ends a process.)
const MEMORY: libc::off_t = libc::off_t::MAX;
/// Where inputs may put guest memory so that the prepared virtqueue's buffers lie in it.
const GUEST_START: u64 = 0x1_0000;

/// What all inputs share.
struct Fixture {
    config: WorkerConfig,
    share: File,
    listener: Mutex<Listener>,
    socket: PathBuf,
}

fuzz_target!(|input: &[u8]| {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    let fixture = FIXTURE.get_or_init(Fixture::new);
    close_leaked_events();
    let messages = Message::all(input);
    let memory: AtomicMemory = GuestMemoryAtomic::new(Memory::new());
    let device = Arc::new(fixture.device(&memory));
    let daemon = VhostUserDaemon::new("vhost-user".to_owned(), device, memory.clone());
    let mut daemon = daemon.expect("threads and their epoll instances");
    let mut stream = UnixStream::connect(&fixture.socket).expect("a listening socket");
    daemon
        .start(&mut fixture.listener.lock().expect("one input at a time"))
        .expect("a connection that waits");

    for message in &messages {
        if message.send(&stream).is_err() {
            break;
        }
    }
    // It may have closed the connection already.
    let _ = stream.shutdown(Shutdown::Write);
    let end = daemon.wait();
    assert!(matches!(end, Ok(()) | Err(DaemonError::HandleRequest(_))), "{end:?}");
    check_replies(&mut stream);
    // A virtqueue whose used ring lies in its own available ring is never empty. Without memory it stops.
    memory.lock().expect("nobody panicked").replace(Memory::new());
});

impl Fixture {
    fn new() -> Self {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let root = std::env::temp_dir().join(format!("fuzz-vhost-user-{}", std::process::id()));
        let share = root.join("share");
        std::fs::create_dir_all(&share).expect("a temporary directory");
        std::fs::write(share.join("file"), "good").expect("a file");
        let socket = root.join("socket");
        let words = ["virtiofsd", "--tag=fuzz", "--num-request-queues=1", "--shared-dir"].map(OsString::from);
        let words =
            words.into_iter().chain([share.clone().into(), "--socket-path".into(), socket.clone().into()]);
        let Ok(Action::Run(config, _)) = cli::parse(words, &Environment::of_this_process()) else {
            panic!("not a command line that serves");
        };
        let listener = UnixListener::bind(&socket).expect("a socket");
        let share = File::open(share).expect("the share");
        Fixture { config: config.worker, share, listener: Mutex::new(listener.into()), socket }
    }

    /// As the worker makes it, with nobody to ask for privileged requests.
    fn device(&self, memory: &AtomicMemory) -> Device {
        let metrics = MetricsMemory::create().expect("memory for metrics");
        let resources = Resources {
            share: self.share.try_clone().expect("an fd").into(),
            share_is_mount_root: false,
            fd_directory: File::open("/proc/self/fd").expect("/proc").into(),
            baseline: Baseline::capture().expect("credentials"),
            broker: None,
            services: Services::default(),
            bounds: Bounds::within(1000, 2),
            metrics: Arc::new(Region::writable(&metrics.fd).expect("memory for metrics")),
        };
        let fs = FileSystem::new(self.config.fs.clone(), resources).expect("a file system over the share");
        let config = (self.config.device.clone(), self.config.migration.clone());
        Device::new(Arc::new(fs), config.0, config.1, memory.clone(), None).expect("a device without timers")
    }
}

/// vhost-user-backend never closes the fd by which it tells a queue thread to end: fine for a process that ends with its
/// daemon, but here are many. Between inputs nothing else has an eventfd.
fn close_leaked_events() {
    static INPUTS: AtomicUsize = AtomicUsize::new(0);
    if INPUTS.fetch_add(1, Ordering::Relaxed) % 64 != 63 {
        return;
    }
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc");
    let is_event = |entry: &DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]")
    };
    let events: Vec<_> =
        entries.filter_map(Result::ok).filter(is_event).map(|entry| entry.file_name()).collect();
    for number in events {
        let number = number.to_str().and_then(|text| text.parse().ok()).expect("a number");
        // SAFETY: nobody who is still there has an eventfd: the last input's threads have been joined, its fds dropped.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
}

/// One message of the front end.
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Message {
    fn all(mut input: &[u8]) -> Vec<Self> {
        let mut messages = Vec::new();
        while let [fds, request, flags, length, rest @ ..] = input {
            let (payload, rest) = rest.split_at(rest.len().min((*length).into()));
            input = rest;
            if messages.len() < MAX_MESSAGES && !is_known_crash(*request, payload) {
                messages.push(Self::new(*fds, *request, *flags, payload));
            }
        }
        messages
    }

    /// `flags`: the header's in its lower half, with a good version as 0; bit 7 says a size that isn't true.
    fn new(fds: u8, request: u8, flags: u8, payload: &[u8]) -> Self {
        let mut size = u32::try_from(payload.len()).expect("at most 255");
        if flags & 0x80 != 0 {
            size = size.wrapping_add_signed(i32::from(flags as i8 >> 4));
        }
        let header = [u32::from(request), u32::from(flags & 15) ^ VERSION, size];
        let bytes = header.into_iter().flat_map(u32::to_ne_bytes).chain(payload.iter().copied()).collect();
        // The number, and two bits for the kind of each.
        let number = fds & 3;
        let kinds = (0..number).map(|index| fds >> (2 + 2 * index) & 3);
        // State is read to the end of its file.
        let bounded = |kind| if request == SET_DEVICE_STATE_FD { 2 } else { kind };
        Message { bytes, fds: kinds.map(|kind| open(bounded(kind))).collect() }
    }

    fn send(&self, stream: &UnixStream) -> Result<(), ()> {
        let fds: Vec<_> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        // As front ends do it: the header with the fds, then the rest.
        let (header, body) = self.bytes.split_at(HEADER);
        stream.send_with_fds(&[header], &fds).map_err(drop)?;
        let mut stream = stream;
        stream.write_all(body).map_err(drop)
    }
}

/// vhost 0.18 takes an ADD_MEM_REG whose user address wraps, and computes with it when it looks up a ring's address:
/// that panics. The worker can't come between (`a_region_whose_user_address_wraps_can_hold_no_ring` of the suite
/// `hostile_vmm` sees what becomes of it); here, it would hide everything else.
fn is_known_crash(request: u8, payload: &[u8]) -> bool {
    let word = |index: usize| {
        let bytes = payload.get(8 * index..8 * index + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let wraps = || word(3)?.checked_add(word(2)?);
    request == ADD_MEM_REG && payload.len() >= 40 && wraps().is_none()
}

/// A new fd of one of four kinds.
fn open(kind: u8) -> OwnedFd {
    // SAFETY: plain system calls; the name is NUL-terminated.
    let fd = unsafe {
        match kind {
            0 => return guest_memory(),
            1 => libc::eventfd(1, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK),
            2 => return pipe_without_writer(),
            _ => libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC),
        }
    };
    assert!(fd >= 0, "no more fds");
    // SAFETY: a new fd that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn pipe_without_writer() -> OwnedFd {
    let (reader, _) = std::io::pipe().expect("a pipe");
    reader.into()
}

/// Three requests in a virtqueue of 64: an INIT, a LOOKUP, and a chain that is a loop.
fn guest_memory() -> OwnedFd {
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "no more fds");
    // SAFETY: a new fd that nobody else owns.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: plain system call.
    assert_eq!(unsafe { libc::ftruncate(file.as_fd().as_raw_fd(), MEMORY) }, 0, "a sparse file");
    file.write_all(virtqueue()).expect("room in memory");
    file.into()
}

fn virtqueue() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut bytes = vec![0; 0x5000];
        let mut put = |at: usize, new: &[u8]| bytes[at..at + new.len()].copy_from_slice(new);
        let descriptor = |offset: u64, len: u32, flags: u16, next: u16| {
            let start = [&(GUEST_START + offset).to_le_bytes()[..], &len.to_le_bytes()];
            [&start.concat()[..], &flags.to_le_bytes(), &next.to_le_bytes()].concat()
        };
        let request = |opcode: u32, node: u64, body: &[u8]| {
            let len = u32::try_from(40 + body.len()).expect("short");
            let mut message = [len.to_le_bytes(), opcode.to_le_bytes()].concat();
            message.extend([1u64, node].into_iter().flat_map(u64::to_le_bytes));
            message.extend([0; 16]);
            message.extend(body);
            message
        };
        // FUSE_INIT 7.38 with nothing wanted, and FUSE_LOOKUP of "file" in the root.
        let init: Vec<u8> = [7u32, 38, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        for (index, message) in [request(26, 0, &init), request(1, 1, b"file\0")].iter().enumerate() {
            let (at, first) = (0x3000 + 0x800 * index, 2 * index as u16);
            put(at, message);
            put(16 * usize::from(first), &descriptor(at as u64, message.len() as u32, 1, first + 1));
            put(16 * usize::from(first + 1), &descriptor(at as u64 + 0x400, 0x400, 2, 0));
        }
        put(16 * 4, &descriptor(0x3000, 16, 1, 4));
        // The available ring: flags, index, then the heads.
        let heads = [0u16, 3, 0, 2, 4];
        put(0x1000, &heads.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
        bytes
    })
}

/// All that came back is whole replies.
fn check_replies(stream: &mut UnixStream) {
    let mut bytes = Vec::new();
    // An error is a connection that was closed before all was read.
    let _ = stream.read_to_end(&mut bytes);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let word =
            |index: usize| u32::from_ne_bytes(rest[4 * index..4 * index + 4].try_into().expect("four bytes"));
        assert!(rest.len() >= HEADER && word(1) == VERSION | REPLY, "{rest:x?}");
        let end = HEADER + word(2) as usize;
        assert!(end <= rest.len(), "{rest:x?}");
        rest = &rest[end..];
    }
}
