//! Shows the main job: a virtual machine mounts a directory of this host through virtiofsd, and both sides
//! read and write it. Does all set-up itself and says what happens; the exit status is 0 only when all of it
//! was verified.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tests::guest::{Assets, Daemon, Guest, Kernel, Share, TempDir};

type Failure = Box<dyn std::error::Error>;

const USAGE: &str = "\
Usage: demo [--daemon PROGRAM] [--kernel 6.1|6.12]

Boots a virtual machine that mounts a directory of this host with `mount -t virtiofs`, and checks from both
sides that it works. Nothing on this machine is changed but the build directory.

  --daemon PROGRAM   another virtio-fs daemon in place of the one built here
  --kernel SERIES    the guest's kernel (default: 6.12)
";

const TAG: &str = "shared";
/// From the guest's end to the daemon's.
const DAEMON_EXIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let result = Options::parse(std::env::args().skip(1)).and_then(|options| match options {
        Some(options) => run(&options),
        None => say(USAGE),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\nThe demo FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    daemon: Option<PathBuf>,
    kernel: Kernel,
}

impl Options {
    /// `None` asks for the usage.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, Failure> {
        let mut options = Self { daemon: None, kernel: Kernel::V6_12 };
        while let Some(option) = arguments.next() {
            if option == "--help" || option == "-h" {
                return Ok(None);
            }
            let value =
                arguments.next().ok_or_else(|| format!("{option} is unknown or lacks its value\n{USAGE}"))?;
            match &*option {
                "--daemon" => options.daemon = Some(value.into()),
                "--kernel" => {
                    let kernel = Kernel::from_series(&value);
                    options.kernel =
                        kernel.ok_or_else(|| format!("there is no kernel {value} here\n{USAGE}"))?;
                }
                _ => return Err(format!("{option} is unknown\n{USAGE}").into()),
            }
        }
        Ok(Some(options))
    }
}

/// Prints a line; an error when nobody can read it, so that no success is claimed unseen.
fn say(line: &str) -> Result<(), Failure> {
    Ok(writeln!(io::stdout().lock(), "{line}")?)
}

fn step(number: u32, title: &str) -> Result<(), Failure> {
    say(&format!("\n{number}. {title}"))
}

/// Goes on only when what was found is what was expected, and says what it was.
fn verify(what: &str, found: &str, expected: &str) -> Result<(), Failure> {
    if found != expected {
        return Err(format!("{what}: found {found:?}, expected {expected:?}").into());
    }
    say(&format!("   ok  {what}: {}", found.replace('\n', ", ")))
}

fn run(options: &Options) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(
            "it needs root: the daemon of another user can make files for that user only, and the demo \
                    shows files of several. Try: sudo env \"PATH=$PATH\" cargo run …"
                .into(),
        );
    }
    step(1, "Set-up")?;
    say(
        "   Getting QEMU and guest kernels from the Debian archive (once, about 60 MB, into target/cache) …",
    )?;
    Assets::fetch()?;
    let program = match &options.daemon {
        Some(program) => program.clone(),
        None => {
            say("   Building virtiofsd …")?;
            Daemon::program()
        }
    };

    step(2, "The host shares a directory")?;
    let directory = TempDir::new("demo")?;
    let shared = directory.path();
    // Like /tmp: the guest's users may make files there.
    fs::set_permissions(shared, fs::Permissions::from_mode(0o1777))?;
    fs::write(shared.join("from-host.txt"), "Hello from the host!\n")?;
    say(&format!("   {} contains from-host.txt", shared.display()))?;
    let mut daemon = Daemon::start(&program, shared, &[])?;
    say(&format!(
        "   $ {} --socket-path {} --shared-dir {}",
        program.display(),
        daemon.socket().display(),
        shared.display()
    ))?;

    let result = use_the_share(options.kernel, shared, &daemon);
    let daemon_said = daemon.log();
    result.map_err(|failure| format!("{failure}{daemon_said}"))?;

    step(6, "The end")?;
    match daemon.wait_within(DAEMON_EXIT)? {
        Some(status) if status.success() => {
            say("   ok  the guest powered off, QEMU ended, and virtiofsd ended with status 0")?;
        }
        status => return Err(format!("virtiofsd's end: {status:?}{}", daemon.log()).into()),
    }
    say("\nThe demo succeeded: everything above was checked on both sides.")
}

/// Everything that happens while the guest runs.
fn use_the_share(kernel: Kernel, shared: &Path, daemon: &Daemon) -> Result<(), Failure> {
    step(3, "A virtual machine boots and mounts it")?;
    say("   Booting under QEMU without KVM, so that it works on every machine; some seconds …")?;
    let mut guest = Guest::builder().kernel(kernel).share(Share::new(TAG, &daemon.socket())).boot()?;
    say(&format!("   Linux {} is up after {:.1} s", guest.release(), guest.boot_time().as_secs_f32()))?;
    let at = guest.mount(TAG, "")?;
    say(&format!("   guest# mount -t virtiofs {TAG} {at}"))?;
    let mounted = guest.check(&format!("awk '$2 == \"{at}\" {{ print $1, $3 }}' /proc/mounts"))?;
    verify("what /proc/mounts says in the guest", &mounted, &format!("{TAG} virtiofs"))?;

    step(4, "The guest lists, reads and writes")?;
    verify("guest# ls", &guest.check(&format!("ls -A {at}"))?, "from-host.txt")?;
    verify(
        "guest# cat from-host.txt",
        &guest.check(&format!("cat {at}/from-host.txt"))?,
        "Hello from the host!",
    )?;
    guest.check(&format!("cd {at}; mkdir docs; echo 'Hello from the guest!' >docs/from-guest.txt; sync"))?;
    say("   guest# mkdir docs; echo 'Hello from the guest!' >docs/from-guest.txt; sync")?;
    let written = fs::read_to_string(shared.join("docs/from-guest.txt"))?;
    verify("host# cat docs/from-guest.txt", written.trim_end(), "Hello from the guest!")?;
    fs::write(shared.join("docs/from-host.txt"), "And an answer.\n")?;
    say("   host# echo 'And an answer.' >docs/from-host.txt")?;
    let answer = guest.check(&format!("cat {at}/docs/from-host.txt"))?;
    verify("guest# cat docs/from-host.txt", &answer, "And an answer.")?;
    large_file(&mut guest, &at, shared)?;

    step(5, "Owners are the same on both sides")?;
    guest.check(&format!("su user -c 'umask 022; echo mine >{at}/by-uid-1000.txt'"))?;
    say("   guest (uid 1000)$ echo mine >by-uid-1000.txt")?;
    let meta = fs::metadata(shared.join("by-uid-1000.txt"))?;
    let owner = format!("uid {} gid {} mode {:o}", meta.uid(), meta.gid(), meta.mode() & 0o7777);
    verify("host# stat by-uid-1000.txt", &owner, "uid 1000 gid 1000 mode 644")?;
    let by_root =
        format!("umask 077; echo secret >{at}/by-root.txt; su user -c 'cat {at}/by-root.txt' 2>&1 || :");
    let refused = guest.check(&by_root)?;
    let expected = format!("cat: can't open '{at}/by-root.txt': Permission denied");
    verify("guest (uid 1000)$ cat by-root.txt, a file of root with mode 600", &refused, &expected)?;

    guest.check(&format!("umount {at}"))?;
    guest.power_off()?;
    Ok(())
}

/// 16 MiB there and back, compared byte by byte.
fn large_file(guest: &mut Guest, at: &str, shared: &Path) -> Result<(), Failure> {
    let data: Vec<u8> = (0..1u32 << 24).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(shared.join("large"), &data)?;
    let started = Instant::now();
    let seen = guest.check(&format!("cd {at}; cp large copy; sync; cmp large copy; wc -c <copy"))?;
    verify("guest# cp large copy; cmp large copy; wc -c <copy", &seen, "16777216")?;
    if fs::read(shared.join("copy"))? != data {
        return Err("on the host, the guest's copy differs from the file".into());
    }
    say(&format!("   ok  host# cmp large copy: equal ({:.1} s for all)", started.elapsed().as_secs_f32()))
}
