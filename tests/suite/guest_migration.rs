//! A real guest that migrates from one QEMU to another, and with it from one daemon to another, while a program in it
//! reads and writes (`guest-io`): files of which one was renamed and one removed since they were opened, and a directory
//! that is read half way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tests::guest::{Builder, Daemon, Guest, GuestError, Share, TempDir};
use tests::peers::{Implementation, UpstreamVersion};

/// Entries of the directory that is read half way: their names are more than the C library reads at once.
const ENTRIES: usize = 1500;
/// Rounds of the program before the migration, and again after it.
const ROUNDS: u64 = 30;

/// A guest whose program works on a share, and the daemons that it goes from and to.
struct Moving {
    dir: TempDir,
    from: Daemon,
    to: Daemon,
    guest: Guest,
    target: Guest,
}

/// Everything is as before the migration, with the program at work.
fn at_work(
    [source, destination]: [&Implementation; 2],
    options: &[&str],
    program_options: &str,
) -> Result<Moving, GuestError> {
    let dir = TempDir::new("share")?;
    furnish(dir.path());
    // Without a cache in the guest, what is read comes from the daemon.
    let options: Vec<&str> = ["--cache=never"].iter().chain(options).copied().collect();
    let [from, to] =
        [source, destination].map(|daemon| Daemon::start(&daemon.binary(), dir.path(), &options));
    let (from, to) = (from?, to?);
    let builder = |daemon: &Daemon| -> Builder {
        let program = Path::new(env!("CARGO_BIN_EXE_guest-io"));
        Guest::builder().program(program).share(Share::new("t", &daemon.socket()))
    };
    let mut guest = builder(&from).boot()?;
    guest.mount("t", "")?;
    guest.check(&format!("guest-io /mnt/t {ENTRIES} {program_options} >/tmp/result 2>&1 &"))?;
    wait_for_rounds(&mut guest)?;
    let target = builder(&to).incoming()?;
    Ok(Moving { dir, from, to, guest, target })
}

/// The program goes on; fails when it has ended.
fn wait_for_rounds(guest: &mut Guest) -> Result<(), GuestError> {
    let script = format!(
        "before=$(cat /tmp/progress 2>/dev/null || echo 0)
         while [ ! -s /tmp/result ] && [ \"$(cat /tmp/progress 2>/dev/null || echo 0)\" -lt $((before + {ROUNDS})) ]; do
             usleep 10000
         done
         [ ! -s /tmp/result ] || {{ cat /tmp/result; dmesg | tail -n 5; exit 1; }} >&2"
    );
    guest.check(&script).map(drop)
}

/// The program's last word.
fn result(guest: &mut Guest) -> Result<String, GuestError> {
    wait_for_rounds(guest)?;
    guest.check("touch /tmp/stop; while [ ! -s /tmp/result ]; do usleep 10000; done; cat /tmp/result")
}

fn migrates(daemons: [&Implementation; 2], options: &[&str], program: &str) -> Result<(), GuestError> {
    let Moving { dir, from, mut to, guest, target } = at_work(daemons, options, program)?;
    let mut guest = guest.migrate(target).unwrap_or_else(|e| panic!("{e}\n{}\n{}", from.log(), to.log()));
    let said = result(&mut guest)
        .unwrap_or_else(|e| panic!("{e}\nsource:\n{}\ndestination:\n{}", from.log(), to.log()));
    assert!(said.starts_with("ok "), "{said}{}", to.log());
    // The host finds what the guest wrote.
    let moved = fs::read_to_string(dir.path().join("after/moved")).unwrap();
    assert_eq!(moved.len(), 64 << 10);
    for (index, block) in moved.as_bytes().chunks(1024).enumerate() {
        assert!(block.starts_with(format!("renamed {index} ").as_bytes()), "block {index}");
    }
    assert_eq!(guest.check("echo late >/mnt/t/late && cat /mnt/t/late")?, "late");
    guest.power_off()?;
    let status = to.process().wait_within(Duration::from_secs(20))?;
    assert!(status.is_some_and(|status| status.success()), "{}", to.log());
    assert_eq!(fs::read_to_string(dir.path().join("late")).unwrap(), "late\n");
    Ok(())
}

fn furnish(share: &Path) {
    fs::set_permissions(share, fs::Permissions::from_mode(0o777)).unwrap();
    for directory in ["kept", "before", "many"] {
        fs::create_dir(share.join(directory)).unwrap();
    }
    for entry in 0..ENTRIES {
        fs::write(share.join(format!("many/{entry:0>100}")), "").unwrap();
    }
}

const BY_HANDLES: &[&str] = &["--migration-mode=file-handles"];
const OURS: &Implementation = &Implementation::Ours;
const V1_13: &Implementation = &Implementation::Upstream(UpstreamVersion::V1_13_3);

#[test]
fn between_two_of_ours() -> Result<(), GuestError> {
    migrates([OURS, OURS], BY_HANDLES, "--remove")
}

#[test]
fn from_upstream_to_ours() -> Result<(), GuestError> {
    migrates([V1_13, OURS], BY_HANDLES, "--remove")
}

/// By paths a removed file can't come along; the others can.
#[test]
fn by_paths() -> Result<(), GuestError> {
    migrates([OURS, OURS], &["--migration-confirm-paths"], "")
}

/// The destination refuses a guest that would lose a file: QEMU lets it go on at the source, and its program doesn't notice.
#[test]
fn a_refused_guest_goes_on_at_its_source() -> Result<(), GuestError> {
    let Moving { dir: _dir, mut from, to, mut guest, mut target } = at_work([OURS, OURS], &[], "--remove")?;
    let refused = guest.try_migrate(&mut target);
    let reason = to.log().to_string();
    assert!(
        refused.is_err() && reason.contains("--migration-on-error=abort"),
        "{refused:?}{}{}",
        from.log(),
        to.log()
    );
    let said = result(&mut guest)?;
    assert!(said.starts_with("ok "), "{said}{}", from.log());
    guest.power_off()?;
    let status = from.process().wait_within(Duration::from_secs(20))?;
    assert!(status.is_some_and(|status| status.success()), "{}", from.log());
    Ok(())
}
