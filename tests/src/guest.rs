//! A real Linux guest with virtio-fs devices: the third front end of the tests.
//!
//! [`Builder`] boots a Debian kernel under QEMU's TCG with a small initramfs, [`Guest::run`] runs shell
//! scripts in it, and [`Guest::migrate`] moves it to a second QEMU. The daemon at the other end of each
//! vhost-user socket may be any; [`Daemon`] starts one. Everything that waits has a time-out, a failure
//! carries what the guest's console and QEMU itself said, and nothing that was started outlives the test.
//!
//! What it does not do: it never uses KVM, so that a boot is the same on every machine; it gives the guest no
//! network and no disk.

mod agent;
mod assets;
mod daemon;
mod error;
mod initramfs;
mod process;
mod qemu;
mod qmp;
mod tempdir;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use agent::Output;
pub use assets::{Assets, Kernel};
pub use daemon::Daemon;
pub use error::{GuestError, Log};
pub use process::Process;
pub use tempdir::TempDir;

use agent::Agent;
use error::LogSource;
use initramfs::Initramfs;
use qmp::Qmp;

/// From the start of QEMU to the guest's readiness. A boot takes 3 s on an idle machine; the rest is for
/// machines that are slow or busy.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// What one script may take unless [`Guest::run_within`] says otherwise.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);
/// From a request to power off, or to quit, to QEMU's exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);
/// For all of a migration.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(120);

/// One `vhost-user-fs-pci` device.
#[derive(Debug, Clone)]
pub struct Share {
    tag: String,
    socket: PathBuf,
    queues: u16,
    queue_size: u16,
}

impl Share {
    /// A device with one request queue of 1024 entries, which connects to a daemon that listens on `socket`.
    #[must_use]
    pub fn new(tag: &str, socket: &Path) -> Self {
        Self { tag: tag.to_owned(), socket: socket.to_owned(), queues: 1, queue_size: 1024 }
    }

    /// Sets the number of request queues. A 6.12 guest uses one for each of its CPUs, up to this number.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Sets the entries of each queue, a power of two up to 1024 (QEMU's limit).
    #[must_use]
    pub fn queue_size(mut self, entries: u16) -> Self {
        self.queue_size = entries;
        self
    }
}

/// What a guest is made of; ends with [`Builder::boot`] or [`Builder::incoming`].
#[derive(Debug, Clone)]
pub struct Builder {
    kernel: Kernel,
    cpus: u16,
    memory_mib: u32,
    reboots: bool,
    shares: Vec<Share>,
    files: Vec<(PathBuf, String)>,
    programs: Vec<PathBuf>,
    tools: Vec<String>,
}

impl Builder {
    /// Chooses the kernel (default: the newest).
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// Sets the number of virtual CPUs (default 1).
    #[must_use]
    pub fn cpus(mut self, cpus: u16) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the guest's memory in MiB (default 512).
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Lets the guest restart, see [`Guest::reboot`]; without it, a restart (a panic, say) ends QEMU.
    #[must_use]
    pub fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// Adds a virtio-fs device.
    #[must_use]
    pub fn share(mut self, share: Share) -> Self {
        self.shares.push(share);
        self
    }

    /// Puts a file of the host into the initramfs at `inside`, an absolute path, with its permissions.
    #[must_use]
    pub fn file(mut self, host: &Path, inside: &str) -> Self {
        self.files.push((host.to_owned(), inside.to_owned()));
        self
    }

    /// Puts a program of the host into the guest's `/bin`, with the libraries that `ldd` lists.
    #[must_use]
    pub fn program(mut self, host: &Path) -> Self {
        self.programs.push(host.to_owned());
        self
    }

    /// Puts a program of the fetched packages (`setfattr`, say) into the guest's `PATH`.
    #[must_use]
    pub fn tool(mut self, name: &str) -> Self {
        self.tools.push(name.to_owned());
        self
    }

    /// Boots the guest and waits until it takes scripts.
    ///
    /// # Errors
    /// Each step that can fail has its [`GuestError`]; nothing is left running then.
    pub fn boot(&self) -> Result<Guest, GuestError> {
        let started = Instant::now();
        let mut guest = self.start(false)?;
        guest.release = guest.with_log(|agent, log| agent.ready(BOOT_TIMEOUT, log))?;
        guest.boot_time = started.elapsed();
        Ok(guest)
    }

    /// Starts a QEMU that waits for a guest of the same making to be migrated to it.
    ///
    /// # Errors
    /// As [`Builder::boot`].
    pub fn incoming(&self) -> Result<Guest, GuestError> {
        self.start(true)
    }

    fn start(&self, incoming: bool) -> Result<Guest, GuestError> {
        let assets = Assets::fetch()?;
        let dir = TempDir::new("guest")?;
        let initramfs = dir.path().join("initramfs");
        self.initramfs(&assets)?.write(&initramfs)?;
        let parts = qemu::start(self, &assets, &dir, &initramfs, incoming)?;
        Ok(Guest {
            agent: Some(parts.agent),
            qmp: parts.qmp,
            process: parts.process,
            release: String::new(),
            boot_time: Duration::ZERO,
            dir,
        })
    }

    fn initramfs(&self, assets: &Assets) -> Result<Initramfs, GuestError> {
        let mut initramfs = Initramfs::base(assets, self.kernel)?;
        for (host, inside) in &self.files {
            initramfs.host_file(host, inside)?;
        }
        for program in &self.programs {
            initramfs.host_program(program)?;
        }
        for tool in &self.tools {
            initramfs.tool(assets, tool)?;
        }
        Ok(initramfs)
    }
}

/// A running guest. Dropping it kills QEMU.
#[derive(Debug)]
pub struct Guest {
    /// None once a script timed out: its answer may still come, and would be taken for the next one's.
    agent: Option<Agent>,
    qmp: Qmp,
    process: Process,
    release: String,
    boot_time: Duration,
    dir: TempDir,
}

impl Guest {
    /// A guest with one CPU, 512 MiB and the newest kernel, and no share yet.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            kernel: Kernel::V6_12,
            cpus: 1,
            memory_mib: 512,
            reboots: false,
            shares: Vec::new(),
            files: Vec::new(),
            programs: Vec::new(),
            tools: Vec::new(),
        }
    }

    /// What `uname -r` says in the guest.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// From the call of [`Builder::boot`] to the guest's readiness.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Runs a shell script in the guest as root, in `/`, with nothing on standard input, and waits for its
    /// end. Standard output and error are kept in the guest's memory meanwhile.
    ///
    /// # Errors
    /// When the script does not end within a minute (the guest takes no more scripts then), or the guest or
    /// QEMU ends. A status other than 0 is no error here.
    pub fn run(&mut self, script: &str) -> Result<Output, GuestError> {
        self.run_within(script, RUN_TIMEOUT)
    }

    /// As [`Guest::run`], with another limit.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn run_within(&mut self, script: &str, limit: Duration) -> Result<Output, GuestError> {
        self.with_log(|agent, log| agent.run(script, limit, log))
    }

    /// Runs a shell script that has to succeed: `set -e` is on. Returns its standard output without white
    /// space at the end.
    ///
    /// # Errors
    /// As [`Guest::run`], and when the status is not 0.
    pub fn check(&mut self, script: &str) -> Result<String, GuestError> {
        let output = self.run(&format!("set -eu\n{script}"))?;
        if output.status != 0 {
            return Err(GuestError::Script { script: script.to_owned(), output });
        }
        Ok(output.stdout_lossy().trim_end().to_owned())
    }

    /// Mounts the share with that tag at `/mnt/TAG`, with mount options or `""`, and returns that path.
    ///
    /// # Errors
    /// As [`Guest::check`].
    pub fn mount(&mut self, tag: &str, options: &str) -> Result<String, GuestError> {
        let at = format!("/mnt/{tag}");
        let options = if options.is_empty() { String::new() } else { format!("-o '{options}'") };
        self.check(&format!("mkdir -p '{at}'\nmount -t virtiofs {options} '{tag}' '{at}'"))?;
        Ok(at)
    }

    /// Resets the machine without any goodbye, as a crash would, and waits until the guest is up again.
    /// Needs [`Builder::reboots`].
    ///
    /// # Errors
    /// As [`Builder::boot`].
    pub fn reboot(&mut self) -> Result<(), GuestError> {
        self.monitor("system_reset", &json!({}))?;
        self.release = self.with_log(|agent, log| agent.ready(BOOT_TIMEOUT, log))?;
        Ok(())
    }

    /// Runs a command on QEMU's monitor and returns what it answers.
    ///
    /// # Errors
    /// When QEMU refuses it, or is gone.
    pub fn qmp(&mut self, command: &str, arguments: &Value) -> Result<Value, GuestError> {
        self.monitor(command, arguments)
    }

    fn monitor(&mut self, command: &str, arguments: &Value) -> Result<Value, GuestError> {
        let dir = &self.dir;
        self.qmp
            .execute(command, arguments)
            .map_err(|e| qemu::or_its_end(&mut self.process, e, &|| qemu::log(dir)))
    }

    /// Moves the guest to `target`, which came from [`Builder::incoming`] of an equal builder, ends the
    /// source QEMU and returns the guest at its new place.
    ///
    /// # Errors
    /// When the migration fails. The guest then still runs at its source: call [`Guest::try_migrate`]
    /// instead to keep it.
    pub fn migrate(mut self, mut target: Self) -> Result<Self, GuestError> {
        self.try_migrate(&mut target)?;
        self.quit()?;
        Ok(target)
    }

    /// As [`Guest::migrate`], but leaves the source QEMU there: stopped after success; after a failure the
    /// guest runs on in it.
    ///
    /// # Errors
    /// When the migration fails.
    pub fn try_migrate(&mut self, target: &mut Self) -> Result<(), GuestError> {
        let uri = format!("unix:{}", target.dir.path().join("migration").display());
        target.monitor("migrate-incoming", &json!({ "uri": uri }))?;
        // With a return path the source waits for the destination's word, and goes on if that is "no".
        let on = |name: &str| json!({ "capability": name, "state": true });
        let capabilities = json!({ "capabilities": [on("events"), on("return-path")] });
        self.monitor("migrate-set-capabilities", &capabilities)?;
        self.monitor("migrate", &json!({ "uri": uri }))?;
        let dir = &self.dir;
        let status = self.qmp.migration_end(MIGRATION_TIMEOUT, &|| qemu::log(dir))?;
        if status != "completed" {
            let info = self.monitor("query-migrate", &json!({}))?;
            let reason = info["error-desc"].as_str().unwrap_or("QEMU gives no reason").to_owned();
            let log = self.log().and(&target.log());
            return Err(GuestError::Migration { status, reason, log });
        }
        let dir = &target.dir;
        target.qmp.resumed(MIGRATION_TIMEOUT, &|| qemu::log(dir))?;
        target.release.clone_from(&self.release);
        Ok(())
    }

    /// Powers the guest off and waits for QEMU's end, which closes the vhost-user connections.
    ///
    /// # Errors
    /// When QEMU is still there after 30 s (it is killed), or did not end with status 0.
    pub fn power_off(mut self) -> Result<(), GuestError> {
        let agent = self.agent.take().ok_or(GuestError::Stuck)?;
        // The guest's agent answers the end of the connection with poweroff.
        drop(agent);
        self.wait_end("QEMU's end after the guest's power-off")
    }

    /// Ends QEMU from its monitor, whatever the guest does.
    ///
    /// # Errors
    /// As [`Guest::power_off`].
    pub fn quit(mut self) -> Result<(), GuestError> {
        self.monitor("quit", &json!({}))?;
        self.wait_end("QEMU's end after quit")
    }

    fn wait_end(&mut self, what: &str) -> Result<(), GuestError> {
        match self.process.wait_within(EXIT_TIMEOUT)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(GuestError::Ended { what: "QEMU".to_owned(), status, log: self.log() }),
            None => Err(GuestError::TimedOut { what: what.to_owned(), after: EXIT_TIMEOUT, log: self.log() }),
        }
    }

    /// QEMU's process id.
    #[must_use]
    pub fn qemu_pid(&self) -> i32 {
        self.process.pid()
    }

    fn log(&self) -> Log {
        qemu::log(&self.dir)
    }

    /// Lends the agent out; after a failure the guest takes no more scripts.
    fn with_log<T>(
        &mut self,
        act: impl FnOnce(&mut Agent, LogSource<'_>) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        let mut agent = self.agent.take().ok_or(GuestError::Stuck)?;
        let dir = &self.dir;
        let result = act(&mut agent, &|| qemu::log(dir))?;
        self.agent = Some(agent);
        Ok(result)
    }
}
