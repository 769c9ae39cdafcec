//! QEMU's command line and start.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::agent::{Agent, accept};
use super::error::LogSource;
use super::qmp::Qmp;
use super::{Assets, Builder, GuestError, Log, Process, TempDir};

/// From the start of QEMU to its connections to our sockets; it makes them before it starts the guest.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// From the loss of QEMU's connections to its end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The clock and the consistency checks are what TCG is slow at; addresses are kept so that traces compare.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable \
                                   cryptomgr.notests nokaslr";

const CONSOLE: &str = "console.log";
const OUTPUT: &str = "qemu.log";

/// A started QEMU.
pub(super) struct Parts {
    pub(super) process: Process,
    pub(super) agent: Agent,
    pub(super) qmp: Qmp,
}

/// Starts QEMU and takes its connections for the agent's port and the monitor.
pub(super) fn start(
    builder: &Builder,
    assets: &Assets,
    dir: &TempDir,
    initramfs: &Path,
    incoming: bool,
) -> Result<Parts, GuestError> {
    // QEMU connects to these, so there is no moment at which one has to wait for it to listen.
    let (agent, qmp) = (listen(&dir.path().join("agent"))?, listen(&dir.path().join("qmp"))?);
    let output = dir.path().join(OUTPUT);
    let log_file =
        std::fs::File::create(&output).map_err(GuestError::host(format!("make {}", output.display())))?;
    let cloned = log_file.try_clone().map_err(GuestError::host("duplicate the log's descriptor"))?;

    let mut command = Command::new(assets.qemu());
    command.args(arguments(builder, assets, dir.path(), initramfs, incoming));
    command.stdin(Stdio::null()).stdout(log_file).stderr(cloned);
    let mut process = Process::spawn("QEMU", command)?;

    let log = || log(dir);
    let mut connection = |listener: &UnixListener| -> Result<UnixStream, GuestError> {
        accept(listener, &mut process, CONNECT_TIMEOUT, &log)
    };
    let agent = Agent::new(connection(&agent)?);
    let qmp = connection(&qmp)?;
    // The back ends' connections come after ours, so a daemon that QEMU cannot work with shows here.
    let qmp = Qmp::new(qmp).map_err(|e| or_its_end(&mut process, e, &log))?;
    Ok(Parts { process, agent, qmp })
}

/// After a failed exchange with the monitor: when QEMU has ended, its messages are the reason to report.
pub(super) fn or_its_end(process: &mut Process, error: GuestError, log: LogSource<'_>) -> GuestError {
    match process.wait_within(END_TIMEOUT) {
        Ok(Some(status)) => GuestError::Ended { what: "QEMU".to_owned(), status, log: log() },
        Ok(None) | Err(_) => error,
    }
}

/// What QEMU and the guest's console said.
pub(super) fn log(dir: &TempDir) -> Log {
    let (output, console) = (dir.path().join(OUTPUT), dir.path().join(CONSOLE));
    Log::of(&[("QEMU", &output), ("the guest's console", &console)])
}

fn listen(path: &Path) -> Result<UnixListener, GuestError> {
    UnixListener::bind(path).map_err(GuestError::host(format!("listen on {}", path.display())))
}

fn arguments(
    builder: &Builder,
    assets: &Assets,
    dir: &Path,
    initramfs: &Path,
    incoming: bool,
) -> Vec<String> {
    let dir = dir.display();
    // `vmport` and the like are devices that a boot need not probe. 16-byte compare and exchange is slow and,
    // in older QEMUs, wrong enough under TCG to panic a guest.
    let mut arguments: Vec<String> = [
        "-nodefaults -no-user-config -display none -accel tcg,thread=multi -cpu max,-cx16",
        "-M q35,usb=off,sata=off,smbus=off,vmport=off,memory-backend=mem",
        "-device virtio-serial-pci -device virtserialport,chardev=agent,name=agent",
        "-serial chardev:console -mon chardev=qmp,mode=control",
    ]
    .iter()
    .flat_map(|line| line.split(' ').map(str::to_owned))
    .collect();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);

    add("-smp", builder.cpus.to_string());
    let mib = builder.memory_mib;
    add("-m", format!("{mib}M"));
    add("-object", format!("memory-backend-memfd,id=mem,size={mib}M,share=on"));
    add("-chardev", format!("socket,id=agent,path={dir}/agent"));
    add("-chardev", format!("socket,id=qmp,path={dir}/qmp"));
    add("-chardev", format!("file,id=console,path={dir}/{CONSOLE}"));
    add("-kernel", assets.vmlinux(builder.kernel).display().to_string());
    add("-initrd", initramfs.display().to_string());
    add("-append", KERNEL_COMMAND_LINE.to_owned());
    for (index, share) in builder.shares.iter().enumerate() {
        add("-chardev", format!("socket,id=fs{index},path={}", share.socket.display()));
        add(
            "-device",
            format!(
                "vhost-user-fs-pci,chardev=fs{index},tag={},num-request-queues={},queue-size={}",
                share.tag, share.queues, share.queue_size
            ),
        );
    }
    if incoming {
        add("-incoming", "defer".to_owned());
    }
    if !builder.reboots {
        arguments.push("-no-reboot".to_owned());
    }
    arguments
}
