//! The process that shows metrics: started before the broker confines itself, with a listening socket and the
//! counters to read, and nothing else.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use sandbox::id_maps::{IdMapEntry, IdMaps};
use sandbox::namespaces::Namespaces;
use sandbox::process::{Child, Spawn};

use super::worker::spawn_in_namespaces;
use crate::broker::BrokerError;
use crate::broker::log::Subject as LogSubject;
use crate::broker::requests::HostIds;
use crate::config::{Config, SandboxMode};
use crate::exporter::Instructions;
use crate::exporter::snapshot::Subject;
use crate::protocol::message::Layer;
use crate::protocol::metrics::MetricsMemory;
use crate::protocol::{EXPORTER_ARGV0, EXPORTER_MEMORY_FD, EXPORTER_SOCKET_FD};

/// Its host id where the worker's root is the host's: nobody.
const NOBODY: u32 = 65534;

/// Starts it.
///
/// # Errors
/// [`BrokerError`], by step.
pub fn start(
    config: &Config,
    subject: &LogSubject,
    listener: OwnedFd,
    memory: &MetricsMemory,
    worker_ids: &HostIds,
    privileged: bool,
) -> Result<Child, BrokerError> {
    let exe = open("/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(BrokerError::OwnExecutable)?;
    let memory = memory.read_only()?;
    let in_namespaces = config.confinement.sandbox == SandboxMode::Namespace;
    let instructions = instructions(config, subject)?;
    let request = |namespaces| Spawn {
        exe: exe.as_fd(),
        argv: vec![EXPORTER_ARGV0.to_owned(), instructions.clone()],
        envp: Vec::new(),
        fds: vec![(listener.as_fd(), EXPORTER_SOCKET_FD), (memory.as_fd(), EXPORTER_MEMORY_FD)],
        namespaces,
        id_maps: in_namespaces.then(|| id_map(worker_ids, privileged)),
    };
    Ok(if in_namespaces {
        let tell = |missing: &[Layer], reason: &str| {
            let names: Vec<String> = missing.iter().map(Layer::to_string).collect();
            log::info!("the process that shows metrics has no {} of its own: {reason}", names.join(", "));
        };
        spawn_in_namespaces(Namespaces::all(), request, |_| (), tell)?.0
    } else {
        request(Namespaces::empty()).spawn()?
    })
}

/// One id of the worker's range, so that no other device's process has it; in a pid namespace of its own.
fn id_map(worker_ids: &HostIds, privileged: bool) -> IdMaps {
    if !privileged {
        return IdMaps::own();
    }
    let map = |id: Option<u32>| {
        vec![IdMapEntry { inner: 0, outer: id.filter(|id| *id != 0).unwrap_or(NOBODY), count: 1 }]
    };
    IdMaps { uid: map(worker_ids.uid(0)), gid: map(worker_ids.gid(0)), setgroups_deny: false }
}

/// The limits in force, by their options' names.
fn limits(config: &Config) -> BTreeMap<String, u64> {
    let (device, fs) = (&config.worker.device.limits, &config.worker.fs);
    let all = [
        ("limit-ops", device.operations.map(|limit| limit.rate)),
        ("limit-bandwidth", device.bandwidth.map(|limit| limit.rate)),
        ("max-inodes", fs.max_inodes),
        ("max-handles", fs.max_handles),
    ];
    all.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), limit?))).collect()
}

fn instructions(config: &Config, subject: &LogSubject) -> Result<CString, BrokerError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let subject = Subject {
        share: text(&subject.share),
        device: text(&subject.device),
        request_queues: config.worker.device.num_request_queues,
        limits: limits(config),
    };
    let instructions =
        Instructions { sandbox: config.confinement.sandbox, seccomp: config.confinement.seccomp, subject };
    let failed = |source| BrokerError::Prepare { what: "instructions of the metrics process", source };
    let json = serde_json::to_string(&instructions).map_err(|error| failed(error.into()))?;
    // JSON has no NUL.
    CString::new(json).map_err(|error| failed(error.into()))
}
