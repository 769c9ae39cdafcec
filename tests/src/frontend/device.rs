//! The device as a VMM drives it: negotiation, memory, start and stop of the rings, dirty log and device state,
//! each in the order in which QEMU sends its messages.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::pipe2;

use super::memory::{GuestMemory, PAGE, Region};
use super::messages::{Connection, RegionDescription, Request, VringAddresses, number, vring_state};
use super::queue::{Queue, QueueConfig};
use super::{Error, Result};
use crate::daemon::PATIENCE;
use crate::processes::remaining;

/// Virtio and vhost feature bits.
pub mod features {
    /// VIRTIO_F_VERSION_1
    pub const VERSION_1: u64 = 1 << 32;
    /// VIRTIO_F_RING_INDIRECT_DESC
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_RING_EVENT_IDX
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VHOST_F_LOG_ALL: log each write to guest memory.
    pub const LOG_ALL: u64 = 1 << 26;
    /// VHOST_USER_F_PROTOCOL_FEATURES
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
}

/// Protocol feature bits.
pub mod protocol_features {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const DEVICE_STATE: u64 = 1 << 19;
    /// What QEMU acknowledges for a file system device.
    pub const QEMU: u64 = MQ
        | LOG_SHMFD
        | REPLY_ACK
        | BACKEND_REQ
        | BACKEND_SEND_FD
        | RESET_DEVICE
        | CONFIGURE_MEM_SLOTS
        | DEVICE_STATE;
}

/// What the guest looks like.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Request queues, besides the high-priority queue.
    pub request_queues: u16,
    /// Descriptors a ring; QEMU's device has 128 by default and at most 1024.
    pub queue_size: u16,
    /// Requests in flight on a request queue.
    pub depth: u16,
    /// Bytes of data a request.
    pub max_data: usize,
    /// The virtio features that the guest acknowledges, as far as they are offered.
    pub features: u64,
    /// The protocol features that the VMM acknowledges, as far as they are offered.
    pub protocol_features: u64,
    /// Bytes of guest memory beyond what the queues need, for the test's own use.
    pub spare_memory: usize,
    /// How long the daemon may take for each answer.
    pub limit: Duration,
}

impl Default for DeviceConfig {
    fn default() -> DeviceConfig {
        DeviceConfig {
            request_queues: 1,
            queue_size: 1024,
            depth: 16,
            max_data: 1 << 20,
            features: features::VERSION_1 | features::INDIRECT_DESC | features::EVENT_IDX,
            protocol_features: protocol_features::QEMU | protocol_features::CONFIG,
            spare_memory: 1 << 20,
            limit: PATIENCE,
        }
    }
}

/// Where guest memory begins: neither at 0 nor where it is mapped, so that mixing up addresses shows.
pub const MEMORY_START: u64 = 0x1_0000_0000;
/// Requests in flight on the high-priority queue.
const HIPRIO_DEPTH: u16 = 128;

/// A connected device.
#[derive(Debug)]
pub struct Device {
    connection: Connection,
    config: DeviceConfig,
    memory: Arc<GuestMemory>,
    /// What both sides have.
    features: u64,
    protocol_features: u64,
    offered_queues: u64,
    log: Option<DirtyLog>,
    /// Keeps the other end of the back end's own channel open.
    _backend_channel: Option<UnixStream>,
}

impl Device {
    /// Connects to a daemon as QEMU does when the VM is made, up to where the guest's driver comes: features,
    /// offered queues, owner. The guest gets new memory.
    pub fn connect(stream: UnixStream, config: DeviceConfig) -> Result<Device> {
        let size = queue_configs(&config).map(|queue| queue.memory()).sum::<usize>() + config.spare_memory;
        let memory = GuestMemory::new(vec![Region::new(MEMORY_START, size)?]);
        Device::connect_guest(stream, config, Arc::new(memory))
    }

    /// [`Device::connect`] for a guest that exists: the destination of a migration in this process, or a guest
    /// with a special memory layout.
    pub fn connect_guest(
        stream: UnixStream,
        config: DeviceConfig,
        memory: Arc<GuestMemory>,
    ) -> Result<Device> {
        let mut connection = Connection::new(stream, config.limit);
        let offered = connection.call(Request::GetFeatures, &[], &[])?.as_u64()?;
        let mut protocol = 0;
        let mut offered_queues = 1;
        let mut backend_channel = None;
        if offered & features::PROTOCOL_FEATURES != 0 {
            let offered = connection.call(Request::GetProtocolFeatures, &[], &[])?.as_u64()?;
            protocol = offered & config.protocol_features;
            connection.tell(Request::SetProtocolFeatures, &number(protocol), &[])?;
            connection.reply_ack = protocol & protocol_features::REPLY_ACK != 0;
            if protocol & protocol_features::MQ != 0 {
                offered_queues = connection.call(Request::GetQueueNum, &[], &[])?.as_u64()?;
            }
            if protocol & protocol_features::CONFIGURE_MEM_SLOTS != 0 {
                connection.call(Request::GetMaxMemSlots, &[], &[])?;
            }
            if protocol & protocol_features::BACKEND_REQ != 0 {
                let (ours, theirs) = UnixStream::pair()
                    .map_err(|source| Error::System { what: "make a socket pair", source })?;
                connection.tell(Request::SetBackendReqFd, &[], &[theirs.as_fd()])?;
                backend_channel = Some(ours);
            }
        }
        connection.tell(Request::SetOwner, &[], &[])?;
        let wanted = u64::from(config.request_queues) + 1;
        if offered_queues < wanted {
            return Err(Error::NotOffered(format!("{wanted} queues, only {offered_queues}")));
        }
        let features = offered & (config.features | features::PROTOCOL_FEATURES);
        Ok(Device {
            connection,
            config,
            memory,
            features,
            protocol_features: protocol,
            offered_queues,
            log: None,
            _backend_channel: backend_channel,
        })
    }

    /// [`Device::connect`], the reset at boot, and [`Device::start`]: the usual beginning of a test.
    pub fn boot(stream: UnixStream, config: DeviceConfig) -> Result<(Device, Vec<Queue>)> {
        let mut device = Device::connect(stream, config)?;
        if device.protocol_features & protocol_features::RESET_DEVICE != 0 {
            device.reset()?;
        }
        let queues = device.start()?;
        Ok((device, queues))
    }

    /// RESET_DEVICE.
    pub fn reset(&mut self) -> Result<()> {
        self.connection.tell(Request::ResetDevice, &[], &[])
    }

    /// What a guest's driver causes: features, memory, and all queues made and started. The first is the
    /// high-priority queue.
    pub fn start(&mut self) -> Result<Vec<Queue>> {
        let (features, memory) = (self.features, Arc::clone(&self.memory));
        let queues: Result<Vec<Queue>> = queue_configs(&self.config)
            .map(|config| QueueConfig {
                indirect: features & features::INDIRECT_DESC != 0,
                event_index: features & features::EVENT_IDX != 0,
                ..config
            })
            .map(|config| Queue::new(&memory, config))
            .collect();
        let queues = queues?;
        self.start_at(&queues.iter().collect::<Vec<_>>(), &vec![0; queues.len()])?;
        Ok(queues)
    }

    /// Like [`Device::start`] for queues that exist, each at its index: what a migration's destination does,
    /// with what [`Device::stop`] returned on the source.
    pub fn start_at(&mut self, queues: &[&Queue], bases: &[u16]) -> Result<()> {
        self.set_features()?;
        self.send_memory()?;
        self.resume(queues, bases)
    }

    /// SET_FEATURES with what was negotiated, and LOG_ALL while a dirty log is on.
    fn set_features(&mut self) -> Result<()> {
        let log = if self.log.is_some() { features::LOG_ALL } else { 0 };
        self.connection.tell(Request::SetFeatures, &number(self.features & !features::LOG_ALL | log), &[])
    }

    fn send_memory(&mut self) -> Result<()> {
        let regions = self.memory.regions();
        if self.protocol_features & protocol_features::CONFIGURE_MEM_SLOTS != 0 {
            return regions.iter().try_for_each(|region| self.add_region(region));
        }
        let table: Vec<RegionDescription> = regions.iter().map(|region| region.description()).collect();
        let files: Vec<BorrowedFd<'_>> = regions.iter().map(|region| region.file()).collect();
        self.connection.tell(Request::SetMemTable, &RegionDescription::to_table(&table), &files)
    }

    /// ADD_MEM_REG.
    pub fn add_region(&self, region: &Region) -> Result<()> {
        self.connection.tell(Request::AddMemReg, &region.description().to_single(), &[region.file()])
    }

    /// REM_MEM_REG.
    pub fn remove_region(&self, region: &Region) -> Result<()> {
        self.connection.tell(Request::RemMemReg, &region.description().to_single(), &[])
    }

    /// Starts all rings, each at its index: after [`Device::stop`], with what that returned.
    pub fn resume(&mut self, queues: &[&Queue], bases: &[u16]) -> Result<()> {
        assert_eq!(queues.len(), bases.len(), "an index for each ring");
        for (index, (queue, base)) in (0..).zip(queues.iter().zip(bases)) {
            let tell =
                |request, payload: &[u8], fds: &[BorrowedFd<'_>]| self.connection.tell(request, payload, fds);
            tell(Request::SetVringNum, &vring_state(index, u32::from(queue.ring().size())), &[])?;
            tell(Request::SetVringBase, &vring_state(index, u32::from(*base)), &[])?;
            tell(Request::SetVringAddr, &self.ring_addresses(index, queue).to_bytes(), &[])?;
            tell(Request::SetVringErr, &number(index.into()), &[queue.error_fd()])?;
            tell(Request::SetVringKick, &number(index.into()), &[queue.kick_fd()])?;
            tell(Request::SetVringCall, &number(index.into()), &[queue.call_fd()])?;
        }
        self.enable(queues.len(), true)
    }

    /// What SET_VRING_ADDR says of a virtqueue.
    pub fn ring_addresses(&self, index: u32, queue: &Queue) -> VringAddresses {
        let log = u32::from(self.log.is_some());
        VringAddresses { flags: log, ..queue.ring().addresses(index) }
    }

    /// SET_VRING_ENABLE for the first `count` rings; nothing without protocol features.
    pub fn enable(&self, count: usize, on: bool) -> Result<()> {
        if self.features & features::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        (0..count as u32).try_for_each(|index| {
            self.connection.tell(Request::SetVringEnable, &vring_state(index, on.into()), &[])
        })
    }

    /// Stops all rings, as when a VM is paused. Returns where the daemon says that each stands: the index of
    /// the next available entry that it would have read.
    pub fn stop(&self) -> Result<Vec<u16>> {
        let count = usize::from(self.config.request_queues) + 1;
        self.enable(count, false)?;
        let bases = (0..count as u32).map(|index| {
            let reply = self.connection.call(Request::GetVringBase, &vring_state(index, 0), &[])?;
            // The payload is the ring's number and then its index, little-endian on all machines we run on.
            u16::try_from(reply.as_u64()? >> 32)
                .map_err(|_| Error::Protocol(format!("GET_VRING_BASE beyond 16 bits: {reply:?}")))
        });
        bases.collect()
    }

    /// GET_CONFIG: `len` bytes of the device's configuration space.
    pub fn config_space(&self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let mut payload = [offset, len, 0].into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<u8>>();
        payload.resize(12 + len as usize, 0);
        let reply = self.connection.call(Request::GetConfig, &payload, &[])?.payload;
        reply.get(12..).map(<[u8]>::to_vec).ok_or_else(|| Error::Protocol("a short GET_CONFIG".into()))
    }

    /// Turns the dirty log on, while the rings run, as QEMU does when a migration begins.
    pub fn start_log(&mut self, queues: &[&Queue]) -> Result<()> {
        let regions = self.memory.regions();
        let end = regions.iter().map(|region| region.description()).map(|r| r.guest + r.size).max();
        let log = DirtyLog::new(end.expect("a guest has memory"))?;
        let payload = [log.region().description().size, 0].into_iter().flat_map(u64::to_ne_bytes);
        // With LOG_SHMFD the reply has no agreed payload, only the request's number.
        self.connection.call(Request::SetLogBase, &payload.collect::<Vec<u8>>(), &[log.region().file()])?;
        self.log = Some(log);
        self.send_log_state(queues)
    }

    /// Turns the dirty log off; returns its last state.
    pub fn stop_log(&mut self, queues: &[&Queue]) -> Result<Option<DirtyLog>> {
        let log = self.log.take();
        self.send_log_state(queues)?;
        Ok(log)
    }

    fn send_log_state(&mut self, queues: &[&Queue]) -> Result<()> {
        self.set_features()?;
        for (index, queue) in (0..).zip(queues) {
            let addresses = self.ring_addresses(index, queue);
            self.connection.tell(Request::SetVringAddr, &addresses.to_bytes(), &[])?;
        }
        Ok(())
    }

    /// The dirty log, while it is on.
    pub fn dirty_log(&self) -> Option<&DirtyLog> {
        self.log.as_ref()
    }

    /// Saves the device's state (all rings must be stopped).
    pub fn save_state(&self) -> Result<Vec<u8>> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::system("make a pipe"))?;
        self.set_state_fd(StateDirection::Save, write.as_fd())?;
        drop(write);
        let state = read_to_end(&File::from(read), self.config.limit)?;
        self.check_state()?;
        Ok(state)
    }

    /// Loads a device state (all rings must be stopped). A daemon that stops reading early ends the transfer;
    /// what it thinks of the state is the answer to CHECK_DEVICE_STATE.
    pub fn load_state(&self, state: &[u8]) -> Result<()> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::system("make a pipe"))?;
        self.set_state_fd(StateDirection::Load, read.as_fd())?;
        drop(read);
        match File::from(write).write_all(state) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(Error::System { what: "write a device state", source: e });
            }
            _ => {}
        }
        self.check_state()
    }

    /// SET_DEVICE_STATE_FD in phase "stopped".
    pub fn set_state_fd(&self, direction: StateDirection, fd: BorrowedFd<'_>) -> Result<()> {
        const INVALID_FD: u64 = 0x100;
        let request = Request::SetDeviceStateFd;
        let reply = self.connection.call(request, &vring_state(direction as u32, 0), &[fd])?;
        match (reply.as_u64()?, reply.fds.is_empty()) {
            // "No descriptor of my own": the daemon uses ours.
            (INVALID_FD, true) => Ok(()),
            (status, true) => Err(Error::Refused { request, status }),
            (_, false) => Err(Error::Protocol("SET_DEVICE_STATE_FD came back with a descriptor".into())),
        }
    }

    /// CHECK_DEVICE_STATE.
    pub fn check_state(&self) -> Result<()> {
        let request = Request::CheckDeviceState;
        match self.connection.call(request, &[], &[])?.as_u64()? {
            0 => Ok(()),
            status => Err(Error::Refused { request, status }),
        }
    }

    /// The socket, for raw messages.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The negotiated virtio features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The negotiated protocol features.
    pub fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// How many queues the daemon offers, with the high-priority one.
    pub fn offered_queues(&self) -> u64 {
        self.offered_queues
    }
}

/// The configurations of the high-priority queue and of the request queues.
fn queue_configs(config: &DeviceConfig) -> impl Iterator<Item = QueueConfig> + use<> {
    let request = QueueConfig {
        size: config.queue_size,
        depth: config.depth,
        max_data: config.max_data,
        indirect: true,
        event_index: true,
        limit: config.limit,
    };
    let hiprio = QueueConfig { depth: HIPRIO_DEPTH.min(config.queue_size), max_data: 0, ..request };
    std::iter::once(hiprio).chain(std::iter::repeat_n(request, usize::from(config.request_queues)))
}

/// Which way a device state goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StateDirection {
    /// From the daemon.
    Save = 0,
    /// To the daemon.
    Load = 1,
}

/// One bit for each guest page, from guest address 0 on, which the daemon sets before it tells of a write.
#[derive(Debug)]
pub struct DirtyLog {
    bits: GuestMemory,
    len: usize,
}

impl DirtyLog {
    /// A clean log of guest memory up to this address.
    fn new(end: u64) -> Result<DirtyLog> {
        let len = end.div_ceil(PAGE as u64).div_ceil(8) as usize;
        Ok(DirtyLog { bits: GuestMemory::new(vec![Region::new(0, len)?]), len })
    }

    fn region(&self) -> &Region {
        &self.bits.regions()[0]
    }

    /// Whether the daemon wrote to the page of this guest address since the log was made.
    pub fn is_dirty(&self, guest_address: u64) -> bool {
        let page = guest_address / PAGE as u64;
        let [byte] = self.bits.at(0, (page / 8) as usize, 1).read_array(0);
        byte & (1 << (page % 8)) != 0
    }

    /// The guest addresses of all dirty pages.
    pub fn dirty_pages(&self) -> Vec<u64> {
        let pages = (0..self.len as u64 * 8).map(|page| page * PAGE as u64);
        pages.filter(|address| self.is_dirty(*address)).collect()
    }

    /// Makes all pages clean.
    pub fn clear(&self) {
        self.bits.at(0, 0, self.len).fill(0);
    }
}

/// Reads a pipe to its end, which must come within `limit`.
fn read_to_end(pipe: &File, limit: Duration) -> Result<Vec<u8>> {
    let end = Instant::now() + limit;
    let mut state = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, remaining(end)) {
            Ok(0) => return Err(Error::Timeout { doing: "read a device state", limit }),
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(errno) => return Err(Error::system("poll a pipe")(errno)),
        }
        match nix::unistd::read(pipe, &mut buffer).map_err(Error::system("read a device state"))? {
            0 => return Ok(state),
            count => state.extend_from_slice(&buffer[..count]),
        }
    }
}
