//! The installed package on a clean Debian system, with systemd as init: a share is served through socket
//! activation, to a real guest among others; the service survives restarts, logs to the journal, and the package
//! leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::bounded::bounded;
use tests::bridge::{Bridge, BridgeOptions};
use tests::daemon::PATIENCE;
use tests::guest::{Guest, Share};
use tests::share::TempDir;

use crate::build::deb;
use crate::container::Container;

/// All but the build of the packages.
const LIMIT: Duration = Duration::from_secs(600);

const SERVICE: &str = "virtiofsd@data.service";
const SOCKET: &str = "virtiofsd@data.socket";
const METRICS: &str = "/run/virtiofsd/data/metrics";
const CONFIGURATION: &str = "shared-dir = \"/srv/data\"
xattr = true
metrics-socket = \"/run/virtiofsd/data/metrics\"
limit-ops = 100000
";

#[test]
fn the_package_serves_and_leaves_nothing() {
    let deb = deb();
    bounded(LIMIT, || {
        let container = Container::boot();
        let before = state(&container);
        install(&container, &deb);
        units_are_sound(&container);
        enable(&container);
        serves_a_guest(&container);
        is_confined_while_it_serves(&container);
        follows_mounts(&container);
        survives_restarts(&container);
        tells_why_it_fails(&container);
        container.check("apt-get -qq -y purge virtiofsd-privsep");
        let after = state(&container);
        let different: Vec<_> = before.symmetric_difference(&after).collect();
        assert!(different.is_empty(), "the purge left a difference: {different:#?}");
    });
}

/// All files of the system, the accounts, and what systemd knows of us. Logs, caches and the databases of packages
/// are meant to remember; files in /etc that end with a dash are the account tools' copies of those without.
fn state(container: &Container) -> BTreeSet<String> {
    let lines = container.check(
        "find / -xdev ! -path '/var/log/*' ! -path '/var/cache/*' ! -path '/var/lib/apt/*' ! -path '/var/lib/dpkg/*' \
             ! -path '/etc/*-' ! -path '/srv/*' ! -path '/var/tmp/systemd-private-*' -printf '%M %u:%g %p %l\\n'
         find /run /tmp -name '*virtiofs*'
         cat /etc/passwd /etc/group
         systemctl list-units --all --plain --no-legend 'virtiofsd*'
         systemctl list-unit-files --no-legend 'virtiofsd*' || true",
    );
    lines.lines().map(str::to_owned).collect()
}

fn install(container: &Container, deb: &Path) {
    fs::copy(deb, container.root().join("srv/package.deb")).unwrap();
    container.check("apt-get -qq -y install /srv/package.deb");
    assert!(container.check("getent passwd virtiofsd").contains("nologin"));
    container.check("getent group virtiofsd-clients");
    assert_eq!(container.check("stat -c '%A %U' /run/virtiofsd"), "drwxr-xr-x root");
    assert!(container.check("man --path virtiofsd virtiofsd.toml").lines().count() == 2);
    container.check("virtiofsd --version");
}

/// Also by the rules of the systemd that is installed there.
fn units_are_sound(container: &Container) {
    assert_eq!(container.check(&format!("systemd-analyze verify {SERVICE} {SOCKET} 2>&1")), "");
    container.check(&format!("systemd-analyze security --no-pager --threshold=20 {SERVICE}"));
}

fn enable(container: &Container) {
    fs::create_dir(container.root().join("srv/data")).unwrap();
    fs::write(container.root().join("srv/data/from-host"), "hello from the host\n").unwrap();
    fs::set_permissions(container.root().join("srv/data"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(container.root().join("etc/virtiofsd/data.toml"), CONFIGURATION).unwrap();
    container.check("virtiofsd --check-config /etc/virtiofsd/data.toml");
    container.check(&format!("systemctl enable --quiet --now {SOCKET}"));
    assert_eq!(
        container.check("stat -c '%A %U %G' /run/virtiofsd/data.sock"),
        "srw-rw---- root virtiofsd-clients"
    );
    assert_eq!(state_of(container, SERVICE), "inactive", "nobody has connected yet");
}

fn state_of(container: &Container, unit: &str) -> String {
    container.check(&format!("systemctl is-active {unit} || true"))
}

/// The socket, as this side of the container sees it.
fn socket(container: &Container, instance: &str) -> PathBuf {
    container.inside(&format!("run/virtiofsd/{instance}.sock"))
}

fn serves_a_guest(container: &Container) {
    let share = Share::new("data", &socket(container, "data"));
    let mut guest = Guest::builder().share(share).boot().unwrap();
    let at = guest.mount("data", "").unwrap();
    assert_eq!(state_of(container, SERVICE), "active", "the connection has started it");
    assert_eq!(guest.check(&format!("cat {at}/from-host")).unwrap(), "hello from the host");
    let script = format!(
        "echo hello from the guest >{at}/from-guest && chown 1000:1000 {at}/from-guest && \
                          chmod 4755 {at}/from-guest"
    );
    guest.check(&script).unwrap();
    let file = container.root().join("srv/data/from-guest");
    assert_eq!(fs::read_to_string(&file).unwrap(), "hello from the guest\n");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (1000, 1000, 0o4755));
    guest.power_off().unwrap();
    container.await_state(SERVICE, "inactive");
    let result = container.check(&format!("systemctl show -P Result -P ExecMainStatus {SERVICE}"));
    assert_eq!(result, "success\n0", "the daemon ends with its guest");
    assert_eq!(state_of(container, SOCKET), "active", "and the socket waits for the next one");
}

/// Connects as a front end, through the kernel's own FUSE client.
fn connect(container: &Container, instance: &str, mountpoint: &TempDir) -> Bridge {
    let stream = UnixStream::connect(socket(container, instance)).expect("connect to the activated socket");
    Bridge::connect(stream, mountpoint.path(), BridgeOptions::default()).unwrap_or_else(|e| {
        panic!("{e}\n{}", container.check(&format!("journalctl --no-pager -u virtiofsd@{instance}.service")))
    })
}

fn is_confined_while_it_serves(container: &Container) {
    let mountpoint = TempDir::short();
    let bridge = connect(container, "data", &mountpoint);
    let broker = container.check(&format!("systemctl show -P MainPID {SERVICE}"));
    let field = |pid: &str, name: &str| {
        container.check(&format!("sed -n 's/^{name}:[[:space:]]*//p' /proc/{pid}/status")).replace('\t', " ")
    };
    // CAP_DAC_READ_SEARCH, for sealed handles, is all that the broker keeps.
    assert_eq!(field(&broker, "CapPrm"), "0000000000000004");
    assert_eq!(field(&broker, "CapBnd"), "0000000000000004");
    let own = container.check("id -u virtiofsd");
    assert_eq!(field(&broker, "Uid"), [own.as_str(); 4].join(" "));
    let children = container.check(&format!("cat /proc/{broker}/task/{broker}/children"));
    let children: Vec<&str> = children.split_whitespace().collect();
    let [worker, exporter] = children[..] else { panic!("not a worker and who shows metrics: {children:?}") };
    for pid in [worker, exporter] {
        assert_eq!(field(pid, "Uid"), ["2147483648"; 4].join(" "));
    }
    for pid in [broker.as_str(), worker, exporter] {
        assert_eq!((field(pid, "NoNewPrivs"), field(pid, "Seccomp")), ("1".to_owned(), "2".to_owned()));
    }
    assert!(
        container.check(&format!("virtiofsd stat --once {METRICS}")).contains("limits: limit-ops 100000")
    );
    let limits = format!("systemctl show -P TasksMax -P MemoryMax -P IOWeight {SERVICE}");
    assert!(!container.check(&limits).contains("infinity"), "{}", container.check(&limits));
    bridge.unmount().unwrap();
    container.await_state(SERVICE, "inactive");
}

/// With the drop-in for it: of the host, from within the unit's own mount namespace.
fn follows_mounts(container: &Container) {
    let directory = format!("etc/systemd/system/{SERVICE}.d");
    let drop_in = tests::paths::workspace().join("packaging/examples/follow-mounts.conf");
    fs::create_dir(container.root().join(&directory)).unwrap();
    fs::copy(drop_in, container.root().join(&directory).join("follow-mounts.conf")).unwrap();
    // As on a host. In a container, systemd leaves its mounts as they were.
    container.check("mount --make-rshared / && systemctl daemon-reload");
    let mountpoint = TempDir::short();
    let bridge = connect(container, "data", &mountpoint);
    let on_host = "/srv/data/late";
    let end = Instant::now() + PATIENCE;
    let await_file = |there: bool| {
        while bridge.path().join("late/file").exists() != there {
            assert!(Instant::now() < end, "{}", container.check("journalctl --no-pager -n 30"));
        }
    };
    container.check(&format!("mkdir -p {on_host} && mount -t tmpfs late {on_host} && touch {on_host}/file"));
    await_file(true);
    let broker = container.check(&format!("systemctl show -P MainPID {SERVICE}"));
    let children = container.check(&format!("cat /proc/{broker}/task/{broker}/children"));
    let follower = children.split_whitespace().last().expect("a follower");
    let capabilities = container.check(&format!("grep ^CapBnd: /proc/{follower}/status"));
    // CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_DAC_READ_SEARCH
    assert!(capabilities.ends_with("0000000000240004"), "{capabilities}");
    container.check(&format!("umount {on_host}"));
    await_file(false);
    bridge.unmount().unwrap();
    container.await_state(SERVICE, "inactive");
    container.check(&format!("rm -r /{directory} {on_host}; systemctl daemon-reload"));
}

fn survives_restarts(container: &Container) {
    let mountpoint = TempDir::short();
    // While it waits for a front end,
    container.check(&format!("systemctl start {SERVICE} && systemctl restart {SERVICE}"));
    let bridge = connect(container, "data", &mountpoint);
    assert_eq!(fs::read_to_string(bridge.path().join("from-guest")).unwrap(), "hello from the guest\n");
    bridge.unmount().unwrap();
    container.await_state(SERVICE, "inactive");
    // and when it is stopped: the socket stays, and the next front end starts it.
    container.check(&format!("systemctl start {SERVICE} && systemctl stop {SERVICE}"));
    let bridge = connect(container, "data", &mountpoint);
    fs::write(bridge.path().join("after-stop"), "written\n").unwrap();
    bridge.unmount().unwrap();
    assert_eq!(fs::read_to_string(container.root().join("srv/data/after-stop")).unwrap(), "written\n");
    container.await_state(SERVICE, "inactive");
}

/// In the journal, and in the unit's state.
fn tells_why_it_fails(container: &Container) {
    fs::write(container.root().join("etc/virtiofsd/lost.toml"), "shared-dir = \"/srv/lost\"\n").unwrap();
    assert_ne!(container.run("systemctl start virtiofsd@lost.service").status.code(), Some(0));
    assert_eq!(state_of(container, "virtiofsd@lost.service"), "failed");
    let journal = container
        .check("journalctl -o json --no-pager -u virtiofsd@lost.service SYSLOG_IDENTIFIER=virtiofsd");
    let entries: Vec<serde_json::Value> =
        journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let error = entries.iter().find(|entry| entry["PRIORITY"] == "3").unwrap_or_else(|| panic!("{journal}"));
    assert!(error["MESSAGE"].as_str().unwrap().contains("/srv/lost"), "{error}");
    assert_eq!((&error["SHARE"], &error["ROLE"]), (&"/srv/lost".into(), &"broker".into()));
    let unknown = container.run("systemctl start virtiofsd@nobody.socket");
    assert_ne!(unknown.status.code(), Some(0), "an instance without a file is refused");
}
