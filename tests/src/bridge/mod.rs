//! Connects the host kernel's own FUSE client to a daemon's virtqueues, so that ordinary programs, and whole
//! test suites, run against the daemon without a VM and at native speed.
//!
//! The kernel's requests are read from `/dev/fuse` straight into guest memory and submitted as a guest's
//! virtio-fs driver submits them; the daemon's replies are written back from guest memory. One thread a
//! request queue (a [`lane`]), each with its own clone of the FUSE device, many requests in flight.
//!
//! Where the two clients differ, this acts as a guest does:
//!
//! - Reply buffers have exactly the size that the guest's kernel gives ([`reply`]); a request without a reply
//!   has none. A reply is checked as the guest's driver checks it (used length, header length, request id); one
//!   that fails is a *violation*: the program sees EIO, and [`Bridge::unmount`] reports it.
//! - `/dev/fuse` gathers forgets into BATCH_FORGET; a guest sends single FORGETs on the high-priority queue.
//! - INTERRUPT stays here: the guest's driver doesn't send it.
//! - INIT goes on as the kernel made it, with SUBMOUNTS added, which the guest's driver always offers (the
//!   host's kernel ignores what comes of it: submounts show as ordinary directories). A guest also offers
//!   MAP_ALIGNMENT and HAS_INODE_DAX, but only with DAX. In the reply, `max_write` and `max_pages` are cut to
//!   what fits a slot, as the guest's driver cuts `max_pages` to its ring.
//! - A guest sends DESTROY when it unmounts; `/dev/fuse` doesn't, so the bridge does.
//! - Not covered: SYNCFS, which the kernel only sends for virtio-fs itself, and DAX.

pub mod lane;
pub mod mount;
pub mod reply;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use crate::daemon::{Daemon, PATIENCE};
use crate::frontend::{self, Device, DeviceConfig, Queue};
use crate::fuse::wire::{self, IN_HEADER, OUT_HEADER, opcode};
use lane::{Forgets, Lane};

/// How a mount is made.
#[derive(Clone, Debug)]
pub struct BridgeOptions {
    /// The guest. Its request queues are the bridge's threads; its ring must hold a request of 256 pages.
    pub device: DeviceConfig,
    /// How long replies to READ, WRITE and FSYNC are held back: to have slow storage.
    pub delay: Duration,
}

impl Default for BridgeOptions {
    fn default() -> BridgeOptions {
        let device = DeviceConfig { depth: 64, ..DeviceConfig::default() };
        BridgeOptions { device, delay: Duration::ZERO }
    }
}

impl BridgeOptions {
    /// With this many request queues.
    pub fn with_queues(request_queues: u16) -> BridgeOptions {
        let mut options = BridgeOptions::default();
        options.device.request_queues = request_queues;
        options
    }
}

/// Why a mount could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The daemon's side.
    #[error("cannot boot the device: {0}")]
    Device(#[from] frontend::Error),
    /// The kernel's side.
    #[error("cannot {what} for {mountpoint}: {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Where.
        mountpoint: PathBuf,
        /// Why it failed.
        source: nix::Error,
    },
    /// The daemon refused INIT, or its answer is none.
    #[error("INIT failed: {0}")]
    Init(String),
}

impl MountError {
    fn kernel(what: &'static str, mountpoint: &Path) -> impl FnOnce(nix::Error) -> MountError + use<> {
        let mountpoint = mountpoint.to_owned();
        move |source| MountError::Kernel { what, mountpoint, source }
    }
}

/// What all lanes share.
#[derive(Debug)]
struct Shared {
    /// Tells the lanes to end.
    stop: EventFd,
    /// Counts the lanes that have ended.
    ended: EventFd,
    /// Requests given to the daemon, but for forgets.
    forwarded: AtomicU64,
    /// What the daemon did wrong, and why lanes ended early.
    violations: Mutex<Vec<String>>,
}

impl Shared {
    fn violation(&self, text: String) {
        let mut list = self.violations.lock().expect("no panic while it is held");
        // The first ones tell the story.
        if list.len() < 100 {
            list.push(text);
        }
    }
}

/// A mount of a daemon's share through the host kernel. Unmounted when dropped, also in a panic.
#[derive(Debug)]
pub struct Bridge {
    mountpoint: PathBuf,
    mounted: bool,
    init: wire::InitOut,
    lanes: Vec<JoinHandle<Queue>>,
    forgets: Arc<Mutex<Forgets>>,
    shared: Arc<Shared>,
    /// Closed last: the daemon ends with it.
    device: Option<Device>,
}

impl Bridge {
    /// Mounts what `daemon` serves at `mountpoint`, with one request queue.
    pub fn mount(daemon: &Daemon, mountpoint: &Path) -> Bridge {
        Bridge::mount_with(daemon, mountpoint, BridgeOptions::default())
    }

    /// Mounts with options.
    pub fn mount_with(daemon: &Daemon, mountpoint: &Path, options: BridgeOptions) -> Bridge {
        Bridge::connect(daemon.connect(), mountpoint, options)
            .unwrap_or_else(|e| panic!("{e}; the daemon's stderr:\n{}", daemon.stderr()))
    }

    /// Mounts what is served at the other end of a vhost-user connection.
    pub fn connect(
        stream: UnixStream,
        mountpoint: &Path,
        options: BridgeOptions,
    ) -> Result<Bridge, MountError> {
        let kernel = |what| MountError::kernel(what, mountpoint);
        let (max_data, delay) = (options.device.max_data, options.delay);
        let (device, queues) = Device::boot(stream, options.device)?;
        let fuse = mount::open().map_err(kernel("open /dev/fuse"))?;
        mount::mount(fuse.as_fd(), mountpoint).map_err(kernel("mount"))?;
        let event = || EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let shared = Shared {
            stop: event().map_err(kernel("make an eventfd"))?,
            ended: event().map_err(kernel("make an eventfd"))?,
            forwarded: AtomicU64::new(0),
            violations: Mutex::new(Vec::new()),
        };
        let mut queues = queues.into_iter();
        let hiprio = queues.next().expect("a device has a high-priority queue");
        // From here on an early return unmounts, by dropping this.
        let mut bridge = Bridge {
            mountpoint: mountpoint.to_owned(),
            mounted: true,
            init: wire::InitOut::default(),
            lanes: Vec::new(),
            forgets: Arc::new(Mutex::new(Forgets::new(hiprio))),
            shared: Arc::new(shared),
            device: Some(device),
        };
        let mut queues: Vec<Queue> = queues.collect();
        bridge.init = lane::forward_init(fuse.as_fd(), &mut queues[0], max_data, mountpoint)?;
        bridge.start_lanes(fuse, queues, delay)?;
        Ok(bridge)
    }

    fn start_lanes(&mut self, fuse: OwnedFd, queues: Vec<Queue>, delay: Duration) -> Result<(), MountError> {
        let connection = self.device.as_ref().expect("set until the end").connection();
        let mut lanes = Vec::new();
        for queue in queues {
            let failed = MountError::kernel("clone /dev/fuse", &self.mountpoint);
            let device = mount::clone(fuse.as_fd()).map_err(failed)?;
            let connection = connection.as_fd().try_clone_to_owned().expect("duplicate a descriptor");
            let (forgets, shared) = (Arc::clone(&self.forgets), Arc::clone(&self.shared));
            lanes.push(Lane::new(device, connection, queue, delay, forgets, shared));
        }
        // The first descriptor closes here: when the lanes have ended, the kernel aborts the connection.
        for (index, lane) in lanes.into_iter().enumerate() {
            let thread = thread::Builder::new().name(format!("lane {index}"));
            self.lanes.push(thread.spawn(move || lane.run()).expect("start a thread"));
        }
        Ok(())
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The daemon's answer to INIT, as the kernel got it.
    pub fn init(&self) -> &wire::InitOut {
        &self.init
    }

    /// Readable when a lane has ended: the mount was unmounted from outside, or the daemon is gone.
    pub fn ended_fd(&self) -> BorrowedFd<'_> {
        self.shared.ended.as_fd()
    }

    /// How many requests the daemon was given so far; INIT, DESTROY and forgets don't count.
    pub fn forwarded(&self) -> u64 {
        self.shared.forwarded.load(Ordering::Relaxed)
    }

    /// What the daemon did wrong so far.
    pub fn violations(&self) -> Vec<String> {
        self.shared.violations.lock().expect("no panic while it is held").clone()
    }

    /// Unmounts, sends DESTROY, cuts the connection. An error tells that the mount was busy or stuck, or what
    /// the daemon did wrong while it was mounted.
    pub fn unmount(mut self) -> Result<(), String> {
        let result = self.end();
        let violations = self.violations();
        result?;
        if violations.is_empty() { Ok(()) } else { Err(format!("violations: {violations:#?}")) }
    }

    /// Ends all that is left. Only an orderly unmount is followed by a DESTROY: else the daemon may hang.
    fn end(&mut self) -> Result<(), String> {
        let mut orderly = self.mounted;
        let mut result = Ok(());
        if orderly {
            self.mounted = false;
            result = unmount_within(&self.mountpoint, PATIENCE, &self.shared);
        }
        orderly = orderly && result.is_ok() && self.violations().is_empty();
        // After an unmount the lanes end by themselves; this is for all other cases. It also closes their
        // descriptors, by which the kernel aborts what is still waiting.
        self.shared.stop.write(1).map_err(|e| format!("stop the lanes: {e}"))?;
        let queues: Vec<Queue> = self.lanes.drain(..).filter_map(|lane| lane.join().ok()).collect();
        let Some(device) = self.device.take() else { return result };
        if let (Some(queue), true) = (queues.into_iter().next(), orderly) {
            let drained = self.forgets.lock().expect("the lanes have ended").drain();
            result = drained.and_then(|()| destroy(queue)).map_err(|e| format!("DESTROY: {e}"));
        }
        drop(device);
        result
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if self.mounted && thread::panicking() {
            self.mounted = false;
            if let Err(e) = mount::force_unmount(&self.mountpoint) {
                eprintln!("cannot unmount {}: {e}", self.mountpoint.display());
            }
        }
        if self.device.is_some() {
            if let Err(e) = self.end() {
                eprintln!("unmount of {}: {e}", self.mountpoint.display());
            }
            for violation in self.violations() {
                eprintln!("violation: {violation}");
            }
        }
    }
}

/// Unmounts in another thread. If that takes longer than `limit`, because the daemon doesn't answer, the lanes
/// are stopped, which aborts the FUSE connection and with it what the unmount waits for.
fn unmount_within(mountpoint: &Path, limit: Duration, shared: &Shared) -> Result<(), String> {
    let (done, wait) = mpsc::channel();
    let path = mountpoint.to_owned();
    // A thread that is started here has our mount namespace.
    thread::spawn(move || done.send(mount::unmount(&path)));
    let first = wait.recv_timeout(limit);
    match first {
        Ok(Ok(())) => return Ok(()),
        // Unmounted by someone else.
        Ok(Err(nix::Error::EINVAL)) => return Ok(()),
        _ => {}
    }
    shared.stop.write(1).map_err(|e| format!("stop the lanes: {e}"))?;
    match first {
        Ok(Err(errno)) => {
            let forced = mount::force_unmount(mountpoint);
            Err(format!("cannot unmount: {errno}; by force: {forced:?}"))
        }
        _ => match wait.recv_timeout(limit) {
            Ok(_) => Err(format!("the daemon blocked the unmount for {limit:?}")),
            Err(_) => Err(format!("the unmount hangs, even after the connection was aborted ({limit:?})")),
        },
    }
}

/// DESTROY; upstream returns it without a reply. Replies to what is still in flight (the kernel doesn't wait for a
/// RELEASE) are dropped meanwhile.
fn destroy(mut queue: Queue) -> frontend::Result<()> {
    let header = wire::InHeader {
        len: IN_HEADER as u32,
        opcode: opcode::DESTROY,
        unique: lane::OWN_REQUEST,
        ..Default::default()
    };
    let reply = queue.exchange(header.as_bytes(), OUT_HEADER)?;
    match wire::OutHeader::read_from_bytes(&reply) {
        Ok(header) if header.error != 0 => Err(frontend::Error::Protocol(format!("{header:?}"))),
        _ => Ok(()),
    }
}
