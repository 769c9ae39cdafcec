//! A real guest that migrates from one QEMU to another, and with it from one daemon to another, while its programs
//! read and write: files that were renamed, replaced or removed since they were opened, and a directory that is
//! read half way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tests::guest::{Daemon, Guest, GuestError, Share, TempDir};
use tests::peers::{Implementation, UpstreamVersion};

/// Entries of the directory that is read half way: their names are more than a pipe takes.
const ENTRIES: usize = 1500;

/// What goes on in the guest. Each program writes `ok`, or what went wrong, to a file in the guest's own memory; they
/// end when `/tmp/stop` is there.
const PROGRAMS: &str = r#"
cd /mnt/t
exec 3<>opened 4<>renamed 5<>removed
echo before >&3; echo before >&4; echo before >&5
mv renamed directory/moved
rm removed
mv directory moved-directory
mkfifo /tmp/names
(find /mnt/t/many >/tmp/names) 2>/tmp/find.err &
(
    read first
    while [ ! -e /tmp/stop ]; do usleep 20000; done
    cat | wc -l
) </tmp/names >/tmp/found &
(
    n=0
    while [ ! -e /tmp/stop ]; do
        n=$((n + 1))
        echo "line $n" >&5 && echo "$n" >/mnt/t/counter && [ "$(cat /mnt/t/counter)" = "$n" ] || break
        echo "$n" >"/mnt/t/moved-directory/file-$((n % 10))" || break
    done
    [ -e /tmp/stop ] && echo "ok $n" || echo "failed at $n"
) >/tmp/result 2>&1 &
while [ ! -s /mnt/t/counter ]; do usleep 10000; done
"#;

/// What must hold after the migration.
const AFTER: &str = r#"
cd /mnt/t
before=$(cat counter)
while [ "$(cat counter)" = "$before" ]; do usleep 10000; done
touch /tmp/stop
while [ ! -s /tmp/result ] || [ ! -s /tmp/found ]; do usleep 10000; done
cat /tmp/result /tmp/found /tmp/find.err
cat moved-directory/moved opened
echo late >late && cat late
"#;

fn migrates(source: &Implementation, destination: &Implementation) -> Result<(), GuestError> {
    let dir = TempDir::new("share")?;
    furnish(dir.path());
    let options = ["--migration-mode=file-handles"];
    let [from, to] =
        [source, destination].map(|daemon| Daemon::start(&daemon.binary(), dir.path(), &options));
    let (from, mut to) = (from?, to?);
    let mut guest = Guest::builder().share(Share::new("t", &from.socket())).boot()?;
    guest.mount("t", "")?;
    guest.check(PROGRAMS)?;
    let target = Guest::builder().share(Share::new("t", &to.socket())).incoming()?;
    let moved = guest.migrate(target).unwrap_or_else(|e| panic!("{e}\n{}\n{}", from.log(), to.log()));
    let mut guest = moved;
    let said = guest.check(AFTER)?;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("ok "), "{said}{}", to.log());
    let expected = [&ENTRIES.to_string(), "before", "before", "late"];
    assert_eq!(lines[1..], expected, "{}", to.log());
    guest.power_off()?;
    let status = to.process().wait_within(std::time::Duration::from_secs(20))?;
    assert!(status.is_some_and(|status| status.success()), "{}", to.log());
    assert_eq!(fs::read_to_string(dir.path().join("late")).unwrap(), "late\n");
    Ok(())
}

fn furnish(share: &Path) {
    fs::set_permissions(share, fs::Permissions::from_mode(0o777)).unwrap();
    for directory in ["directory", "many"] {
        fs::create_dir(share.join(directory)).unwrap();
    }
    for entry in 0..ENTRIES {
        fs::write(share.join(format!("many/{entry:0>100}")), "").unwrap();
    }
}

#[test]
fn between_two_of_ours() -> Result<(), GuestError> {
    migrates(&Implementation::Ours, &Implementation::Ours)
}

#[test]
fn from_upstream_to_ours() -> Result<(), GuestError> {
    migrates(&Implementation::Upstream(UpstreamVersion::V1_13_3), &Implementation::Ours)
}
