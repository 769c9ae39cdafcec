//! The daemon under real guests: kernels 6.1 and 6.12, booted with QEMU. Each test is one boot of some
//! seconds and checks both sides, the guest's view and the host's directory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use tests::guest::{Builder, Daemon, Guest, GuestError, Kernel, Share, TempDir};
use tests::mounts::{Disk, MountsBelow};

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// From the front end's disconnection to the daemon's end.
const DAEMON_EXIT: Duration = Duration::from_secs(20);

/// A shared directory that every user of the guest may write, and the daemon that serves it.
struct Served {
    daemon: Daemon,
    dir: TempDir,
}

impl Served {
    fn new(options: &[&str]) -> Result<Self, GuestError> {
        let dir = TempDir::new("share")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod of the share");
        Ok(Self { daemon: Daemon::start(&Daemon::program(), dir.path(), options)?, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn share(&self, tag: &str) -> Share {
        Share::new(tag, &self.daemon.socket())
    }

    /// The daemon has to outlive every guest's deeds, and to end with status 0 when the front end is gone.
    fn ends_well(mut self) -> TestResult {
        let status = self.daemon.wait_within(DAEMON_EXIT)?;
        let clean = status.is_some_and(|status| status.success());
        assert!(clean, "the daemon's end after the disconnection: {status:?}{}", self.daemon.log());
        Ok(())
    }
}

/// Boots the guest, mounts tag `t`, lets the test work in it, and wants a clean end of all.
fn with_guest(
    builder: Builder,
    served: Served,
    work: impl FnOnce(&mut Guest, &Served) -> TestResult,
) -> TestResult {
    let mut guest = builder.share(served.share("t")).boot()?;
    guest.mount("t", "")?;
    work(&mut guest, &served).map_err(|e| format!("{e}{}", served.daemon.log()))?;
    guest.power_off()?;
    served.ends_well()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("list the share");
    entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

/// What every guest must be able to do, whatever its kernel.
fn ordinary_work(guest: &mut Guest, served: &Served) -> TestResult {
    lists_and_reads_what_the_host_wrote(guest, served)?;
    host_sees_what_the_guest_wrote(guest, served)?;
    owner_is_the_guests_user(guest, served)?;
    renames_and_links(guest, served)?;
    attributes(guest, served)?;
    errors_arrive(guest, served)?;
    remount(guest, served)
}

fn lists_and_reads_what_the_host_wrote(guest: &mut Guest, served: &Served) -> TestResult {
    fs::create_dir(served.path("from-host"))?;
    let expected: BTreeSet<String> = (0..300).map(|n| format!("file {n}")).collect();
    for name in &expected {
        fs::write(served.path("from-host").join(name), format!("contents of {name}\n"))?;
    }
    let listed = guest.check("ls -A /mnt/t/from-host")?;
    assert_eq!(listed.lines().map(str::to_owned).collect::<BTreeSet<_>>(), expected);
    assert_eq!(guest.check("cat '/mnt/t/from-host/file 123'")?, "contents of file 123");

    // 3 MiB and a bit: several READs of the largest size, the last one short.
    let data: Vec<u8> =
        (0..3 * 1024 * 1024 + 123u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(served.path("data"), &data)?;
    let output = guest.run("cat /mnt/t/data")?;
    assert_eq!(output.status, 0, "{output:?}");
    assert!(output.stdout == data, "the guest read {} other bytes", output.stdout.len());
    Ok(())
}

fn host_sees_what_the_guest_wrote(guest: &mut Guest, served: &Served) -> TestResult {
    guest.check(
        "cd /mnt/t; mkdir made; echo hello from the guest >made/hello; echo more >>made/hello
         cp data made/copy; dd if=/dev/zero of=made/synced bs=64k count=4 conv=fsync 2>/dev/null
         truncate -s 5 made/hello; sync; sync -f made/copy",
    )?;
    assert_eq!(read(&served.path("made/hello")), "hello");
    assert!(fs::read(served.path("made/copy"))? == fs::read(served.path("data"))?, "the copy differs");
    assert_eq!(fs::read(served.path("made/synced"))?, vec![0; 256 * 1024]);

    // The host changes a file that the guest knows; the default cache policy shows it within its second.
    fs::write(served.path("made/hello"), "changed by the host")?;
    guest.check("until [ \"$(cat /mnt/t/made/hello)\" = 'changed by the host' ]; do usleep 100000; done")?;
    guest.check("rm -r /mnt/t/made/copy /mnt/t/from-host")?;
    assert_eq!(names(&served.path("made")), ["hello", "synced"].map(str::to_owned).into());
    assert!(!served.path("from-host").exists());
    Ok(())
}

fn owner_is_the_guests_user(guest: &mut Guest, served: &Served) -> TestResult {
    guest.check(
        "su user -c 'cd /mnt/t; umask 022; echo mine >by-user; mkdir dir-of-user; mkfifo fifo-of-user
                     ln -s by-user link-of-user'
         echo root >/mnt/t/by-root; chmod 600 /mnt/t/by-root",
    )?;
    for name in ["by-user", "dir-of-user", "fifo-of-user", "link-of-user"] {
        let meta = fs::symlink_metadata(served.path(name))?;
        assert_eq!((meta.uid(), meta.gid()), (1000, 1000), "owner of {name} on the host");
    }
    assert_eq!(fs::metadata(served.path("by-root"))?.uid(), 0);
    assert_eq!(guest.check("stat -c '%u %g %a' /mnt/t/by-user")?, "1000 1000 644");

    // What the host's uid 1000 owns is the guest user's, and what root keeps to itself is not.
    fs::write(served.path("given"), "given\n")?;
    fs::set_permissions(served.path("given"), fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(served.path("given"), Some(1000), Some(1000))?;
    assert_eq!(guest.check("su user -c 'cat /mnt/t/given'")?, "given");
    let denied = guest.run("su user -c 'cat /mnt/t/by-root'")?;
    assert_ne!(denied.status, 0);
    assert!(denied.stderr_lossy().contains("Permission denied"), "{denied:?}");
    Ok(())
}

fn renames_and_links(guest: &mut Guest, served: &Served) -> TestResult {
    symlink("made/hello", served.path("link-of-host"))?;
    assert_eq!(guest.check("readlink /mnt/t/link-of-host; cat /mnt/t/link-of-user")?, "made/hello\nmine");
    let counts = guest.check(
        "cd /mnt/t; echo a >a; echo b >b; ln a hard; mv b a; mkdir sub; mv hard sub/moved
         ln sub/moved sub/second; stat -c %h sub/moved; cat a sub/second",
    )?;
    assert_eq!(counts, "2\nb\na");
    assert_eq!(fs::metadata(served.path("sub/moved"))?.nlink(), 2);
    assert_eq!((read(&served.path("a")), served.path("b").exists()), ("b\n".to_owned(), false));

    // A file without a name lives on as long as it is open.
    let held = guest.check(
        "cd /mnt/t; echo held >held; exec 5<>held; rm held; echo more >&5; [ ! -e held ]; cat <&5
         stat -L -c %h /proc/self/fd/5",
    )?;
    assert_eq!(held, "0");
    assert!(!served.path("held").exists());
    Ok(())
}

fn attributes(guest: &mut Guest, served: &Served) -> TestResult {
    let size = guest.check(
        "cd /mnt/t; : >attr; chmod 4751 attr; touch -d '2001-02-03 04:05:06' attr; chown 12:34 by-root
         truncate -s 5G sparse; printf end | dd of=sparse bs=1 seek=4294967296 conv=notrunc 2>/dev/null
         dd if=sparse bs=1 skip=4294967296 count=3 2>/dev/null; stat -c %s sparse",
    )?;
    assert_eq!(size, "end5368709120");
    let meta = fs::metadata(served.path("attr"))?;
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o4751, 981_173_106));
    let owner = fs::metadata(served.path("by-root"))?;
    assert_eq!((owner.uid(), owner.gid()), (12, 34));
    assert!(fs::metadata(served.path("sparse"))?.blocks() < 1000, "the hole was filled");

    // df: the guest sees the host's file system.
    let blocks: u64 = guest.check("stat -f -c '%b' /mnt/t")?.parse()?;
    assert!(blocks > 0);
    Ok(())
}

fn errors_arrive(guest: &mut Guest, _: &Served) -> TestResult {
    let long = "x".repeat(256);
    for (script, error) in [
        ("cat /mnt/t/absent", "No such file or directory"),
        ("mkdir /mnt/t/sub", "File exists"),
        ("rmdir /mnt/t/sub", "Directory not empty"),
        ("ls /mnt/t/by-user/x", "Not a directory"),
        (&*format!("cat /mnt/t/{long}"), "File name too long"),
    ] {
        let output = guest.run(script)?;
        assert!(output.status != 0 && output.stderr_lossy().contains(error), "{script}: {output:?}");
    }
    Ok(())
}

/// DESTROY forgets every node; a new mount starts with INIT again.
fn remount(guest: &mut Guest, _: &Served) -> TestResult {
    guest.check("cd /; umount /mnt/t; [ -z \"$(ls -A /mnt/t)\" ]")?;
    guest.mount("t", "")?;
    assert_eq!(guest.check("cat /mnt/t/by-user; echo again >/mnt/t/again; cat /mnt/t/again")?, "mine\nagain");
    Ok(())
}

#[test]
fn linux_6_1_does_ordinary_work() -> TestResult {
    with_guest(Guest::builder().kernel(Kernel::V6_1), Served::new(&[])?, |guest, served| {
        assert!(guest.release().starts_with("6.1."), "{}", guest.release());
        ordinary_work(guest, served)
    })
}

#[test]
fn linux_6_12_does_ordinary_work() -> TestResult {
    with_guest(Guest::builder().kernel(Kernel::V6_12), Served::new(&[])?, |guest, served| {
        assert!(guest.release().starts_with("6.12."), "{}", guest.release());
        ordinary_work(guest, served)
    })
}

/// Four CPUs write through four request queues at the same time.
#[test]
fn several_queues_serve_several_cpus() -> TestResult {
    let served = Served::new(&["--num-request-queues=4"])?;
    let mut guest = Guest::builder().cpus(4).share(served.share("t").queues(4)).boot()?;
    guest.mount("t", "")?;
    // The guest's driver tells which CPUs submit to which request queue: here each to its own.
    let queues = guest.check(
        "cd /sys/fs/virtiofs/*/mqs
         for queue in *; do echo \"$(cat $queue/name) $(cat $queue/cpu_list)\"; done | grep -v hiprio | sort",
    )?;
    let (names, cpus): (Vec<&str>, BTreeSet<&str>) =
        queues.lines().filter_map(|line| line.split_once(' ')).unzip();
    assert_eq!(names, ["requests.0", "requests.1", "requests.2", "requests.3"]);
    assert_eq!(cpus, BTreeSet::from(["0", "1", "2", "3"]), "{queues}");
    guest.check(
        "for cpu in 0 1 2 3; do
             taskset $((1 << cpu)) sh -e -c '
                 cd /mnt/t; mkdir $1; n=0
                 while [ $n -lt 50 ]; do seq $n $((n + 2000)) >$1/$n; mv $1/$n $1/done-$n; n=$((n + 1)); done
             ' sh $cpu &
         done
         wait",
    )?;
    for cpu in 0..4 {
        for n in 0..50 {
            let expected: String = (n..=n + 2000).map(|line| format!("{line}\n")).collect();
            assert_eq!(read(&served.path(&format!("{cpu}/done-{n}"))), expected, "file {n} of CPU {cpu}");
        }
    }
    guest.power_off()?;
    served.ends_well()
}

#[test]
fn extended_attributes() -> TestResult {
    let builder = Guest::builder().tool("setfattr").tool("getfattr");
    with_guest(builder, Served::new(&["--xattr"])?, |guest, _| {
        let value = guest.check(
            "cd /mnt/t; : >f; su user -c 'touch g; /opt/tools/setfattr -n user.mine -v 1 g'
             setfattr -n user.colour -v blue f; setfattr -n user.size -v large f
             /opt/tools/getfattr -d f; setfattr -x user.size f; /opt/tools/getfattr -d f g",
        )?;
        let f = "# file: f\nuser.colour=\"blue\"\n";
        let expected = format!("{f}user.size=\"large\"\n\n{f}\n# file: g\nuser.mine=\"1\"");
        assert_eq!(value, expected);
        Ok(())
    })
}

/// What the host mounts while the guest runs is a mount of its own there, once the guest has looked again. After it was
/// unmounted, the guest lets go of it by itself.
#[test]
fn mounts_of_the_host_come_and_go() -> TestResult {
    let served = Served::new(&["--follow-mounts=always"])?;
    fs::create_dir(served.path("late"))?;
    fs::write(served.path("late/covered"), "covered")?;
    let (disk, place) = (Disk::new(), served.path("late"));
    let share = served.path("");
    let _mounts = MountsBelow(&share);
    with_guest(Guest::builder(), served, |guest, served| {
        let on = "/mnt/t/late";
        let devices = format!("stat -c %d /mnt/t {on} | uniq | wc -l");
        assert_eq!(guest.check(&format!("cat {on}/covered; {devices}"))?, "covered1");
        mount(Some(disk.device()), &place, Some("ext4"), MsFlags::empty(), None::<&str>)?;
        fs::write(served.path("late/file"), "late")?;
        guest.check(&format!("until [ -e {on}/file ]; do usleep 10000; done"))?;
        assert_eq!(guest.check(&format!("{devices}; grep -c ' {on} ' /proc/mounts"))?, "2\n1");
        guest.check(&format!("cat {on}/file; echo more >{on}/made; chown 12:34 {on}/made"))?;
        assert_eq!(fs::metadata(served.path("late/made"))?.uid(), 12);
        umount(&place)?;
        guest.check(&format!("until [ -e {on}/covered ]; do usleep 10000; done"))?;
        assert_eq!(guest.check(&format!("{devices}; grep -c ' {on} ' /proc/mounts || :"))?, "1\n0");
        let end = Instant::now() + DAEMON_EXIT;
        while !disk.is_free() {
            assert!(Instant::now() < end, "the guest still has something of it");
            guest.check("true")?;
        }
        Ok(())
    })
}

/// The driver lets the device go and takes it again, in the same connection.
#[test]
fn driver_unbinds_and_binds_again() -> TestResult {
    with_guest(Guest::builder(), Served::new(&[])?, |guest, _| {
        guest.check("echo before >/mnt/t/kept")?;
        for round in 0..3 {
            guest.check(
                "umount /mnt/t; cd /sys/bus/virtio/drivers/virtiofs; for dev in virtio*; do :; done
                 echo $dev >unbind; [ ! -e $dev ]; echo $dev >bind; [ -e $dev ]",
            )?;
            guest.mount("t", "")?;
            assert_eq!(guest.check("cat /mnt/t/kept")?, "before", "round {round}");
        }
        Ok(())
    })
}

/// The machine is reset while files are open and the share is mounted, as after a crash.
#[test]
fn guest_is_reset_and_boots_again() -> TestResult {
    with_guest(Guest::builder().reboots(), Served::new(&[])?, |guest, served| {
        guest.check("echo one >/mnt/t/one; sync; sleep 1000 </mnt/t/one >/dev/null 2>&1 &")?;
        guest.reboot()?;
        guest.mount("t", "")?;
        assert_eq!(guest.check("cat /mnt/t/one; echo two >/mnt/t/two")?, "one");
        assert_eq!(read(&served.path("two")), "two\n");
        Ok(())
    })
}

#[test]
fn two_devices_in_one_guest() -> TestResult {
    let (left, right) = (Served::new(&[])?, Served::new(&[])?);
    let mut guest = Guest::builder().share(left.share("left")).share(right.share("right")).boot()?;
    guest.mount("left", "")?;
    guest.mount("right", "ro")?;
    fs::write(right.path("f"), "from the right\n")?;
    guest.check("cp /mnt/right/f /mnt/left/f")?;
    assert_eq!(read(&left.path("f")), "from the right\n");
    let refused = guest.run("echo >/mnt/right/g")?;
    assert!(refused.stderr_lossy().contains("Read-only file system"), "{refused:?}");
    guest.power_off()?;
    left.ends_well()?;
    right.ends_well()
}

/// The front end itself: what it promises to the tests that use it.
mod front_end {
    use super::*;

    #[test]
    fn returns_status_and_both_outputs() -> TestResult {
        let mut guest = Guest::builder().program(Path::new("/usr/bin/env")).boot()?;
        let output = guest.run("echo out; echo err >&2; exit 7")?;
        assert_eq!((output.status, &*output.stdout, &*output.stderr), (7, &b"out\n"[..], &b"err\n"[..]));
        assert_eq!(guest.run("kill -9 $$")?.status, 137);
        assert_eq!(guest.run("head -c 1000000 /dev/zero")?.stdout, vec![0; 1_000_000]);
        assert_eq!(guest.check("/bin/env A=b sh -c 'echo $A'")?, "b");
        assert!(matches!(guest.check("false"), Err(GuestError::Script { .. })));
        guest.power_off()?;
        Ok(())
    }

    #[test]
    fn a_script_without_end_is_an_error_and_nothing_stays() -> TestResult {
        let mut guest = Guest::builder().boot()?;
        let late = guest.run_within("sleep 1000", Duration::from_millis(300));
        assert!(matches!(late, Err(GuestError::TimedOut { .. })), "{late:?}");
        assert!(matches!(guest.run("true"), Err(GuestError::Stuck)));
        let proc_entry = format!("/proc/{}", guest.qemu_pid());
        assert!(Path::new(&proc_entry).exists());
        drop(guest);
        assert!(!Path::new(&proc_entry).exists());
        Ok(())
    }

    #[test]
    fn a_guest_that_panics_is_an_error_with_its_console() -> TestResult {
        let mut guest = Guest::builder().boot()?;
        let died = guest.run("echo c >/proc/sysrq-trigger").expect_err("the guest died").to_string();
        assert!(died.contains("sysrq triggered crash"), "{died}");
        Ok(())
    }

    #[test]
    fn a_guest_migrates_to_a_second_qemu() -> TestResult {
        let builder = Guest::builder();
        let mut source = builder.boot()?;
        source.check("echo kept >/tmp/f; (while :; do usleep 1000; done) & echo $! >/tmp/pid")?;
        let mut target = source.migrate(builder.incoming()?)?;
        assert_eq!(target.check("cat /tmp/f; kill $(cat /tmp/pid); echo on")?, "kept\non");
        target.quit()?;
        Ok(())
    }
}
