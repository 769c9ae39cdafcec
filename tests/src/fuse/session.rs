//! A daemon, a device and FUSE clients, started together: what most tests begin with.

use std::process::ExitStatus;
use std::sync::{Arc, Mutex};

use super::client::Client;
use super::wire;
use crate::daemon::{Daemon, DaemonCommand, PATIENCE};
use crate::frontend::{Device, DeviceConfig, Queue};

/// A running daemon with a booted guest that did INIT. Dropped, it cuts the connection and kills the daemon;
/// see [`Session::finish`] for the orderly way.
#[derive(Debug)]
pub struct Session {
    /// One for each request queue.
    pub clients: Vec<Client>,
    /// The daemon's answer to INIT.
    pub init: wire::InitOut,
    /// The high-priority queue.
    pub hiprio: Arc<Mutex<Queue>>,
    /// The VMM's side.
    pub device: Device,
    /// The daemon.
    pub daemon: Daemon,
}

impl Session {
    /// Starts a daemon, boots a guest of this configuration, and mounts: INIT with what Linux offers.
    pub fn start(command: DaemonCommand, config: DeviceConfig) -> Session {
        Session::start_with(command, config, wire::init::GUEST)
    }

    /// Like [`Session::start`] with these INIT flags.
    pub fn start_with(command: DaemonCommand, config: DeviceConfig, flags: u64) -> Session {
        let daemon = command.start();
        let (device, queues) = Device::boot(daemon.connect(), config)
            .unwrap_or_else(|e| panic!("{e}; the daemon's stderr:\n{}", daemon.stderr()));
        let mut queues = queues.into_iter();
        let hiprio = Arc::new(Mutex::new(queues.next().expect("a high-priority queue")));
        let mut clients: Vec<Client> = queues.map(|queue| Client::new(queue, Arc::clone(&hiprio))).collect();
        let (first, others) = clients.split_first_mut().expect("a request queue");
        let init = first.init(flags).expect("INIT");
        for client in others {
            client.setxattr_ext = first.setxattr_ext;
        }
        Session { clients, init, hiprio, device, daemon }
    }

    /// The client on the first request queue.
    pub fn client(&mut self) -> &mut Client {
        &mut self.clients[0]
    }

    /// Calls `act` with the device and all its queues, the high-priority queue first.
    pub fn with_queues<T>(&mut self, act: impl FnOnce(&mut Device, &[&Queue]) -> T) -> T {
        let hiprio = self.hiprio.lock().expect("no panic while it is held");
        let queues: Vec<&Queue> =
            std::iter::once(&*hiprio).chain(self.clients.iter().map(Client::queue)).collect();
        act(&mut self.device, &queues)
    }

    /// Unmounts, ends the VM and waits for the daemon's end: its status and its stderr.
    pub fn finish(mut self) -> (ExitStatus, String) {
        self.client().destroy().expect("DESTROY");
        drop(self.device);
        let status = self.daemon.wait(PATIENCE);
        (status, self.daemon.stderr())
    }
}
