//! A daemon, a device and FUSE clients, started together: what most tests begin with.

use std::process::ExitStatus;
use std::sync::{Arc, Mutex};

use super::client::Client;
use super::wire;
use crate::daemon::{Daemon, DaemonCommand, PATIENCE};
use crate::frontend::{Device, DeviceConfig, Error, Queue};

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

/// What a guest has left behind, which still runs.
#[derive(Debug)]
pub struct Left {
    /// The VMM's side.
    pub device: Device,
    /// The daemon.
    pub daemon: Daemon,
}

/// A migration that did not take place.
#[derive(Debug)]
pub struct Refused {
    /// The guest at its source, stopped.
    pub session: Session,
    /// Why.
    pub error: Error,
    /// Who refused it.
    pub destination: Daemon,
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

    /// Stops the guest's queues and saves the device's state, as QEMU does at the end of a migration (which begins
    /// with [`Device::start_log`]). Returns the state, and where each queue stands.
    pub fn save(&mut self) -> Result<(Vec<u8>, Vec<u16>), Error> {
        let bases = self.device.stop()?;
        Ok((self.device.save_state()?, bases))
    }

    /// The guest goes on at another daemon, from this state. Returns what it goes on with, and the source, which
    /// still runs; when the state is refused, the session at the source as it was, and the destination.
    pub fn load(
        mut self,
        destination: Daemon,
        config: DeviceConfig,
        state: &[u8],
        bases: &[u16],
    ) -> Result<(Session, Left), Box<Refused>> {
        let memory = Arc::clone(self.device.memory());
        let connect = || {
            let mut device = Device::connect_guest(destination.connect(), config, memory)?;
            device.reset()?;
            device.load_state(state)?;
            Ok(device)
        };
        let device = match connect() {
            Ok(device) => device,
            Err(error) => return Err(Box::new(Refused { session: self, error, destination })),
        };
        let source = std::mem::replace(&mut self.device, device);
        let daemon = std::mem::replace(&mut self.daemon, destination);
        match self.with_queues(|device, queues| device.start_at(queues, bases)) {
            Ok(()) => Ok((self, Left { device: source, daemon })),
            Err(error) => {
                let destination = std::mem::replace(&mut self.daemon, daemon);
                self.device = source;
                Err(Box::new(Refused { session: self, error, destination }))
            }
        }
    }

    /// Unmounts, ends the VM and waits for the daemon's end: its status and its stderr.
    pub fn finish(mut self) -> (ExitStatus, String) {
        self.client().destroy().expect("DESTROY");
        drop(self.device);
        let status = self.daemon.wait(PATIENCE);
        (status, self.daemon.stderr())
    }
}
