//! The packages, what is in them, and how they behave on a clean system. Building them takes minutes, most of the
//! checks seconds.
//!
//! Needs the Debian packages debhelper, dh-apparmor, lintian, rpm, rpmlint, rpm2cpio, cpio, apparmor,
//! selinux-policy-dev, make, zsh, fish, mandoc and mmdebstrap.

#[path = "packaging/build.rs"]
mod build;
#[path = "packaging/container.rs"]
mod container;
#[path = "packaging/docs.rs"]
mod docs;
#[path = "packaging/files.rs"]
mod files;
#[path = "packaging/system.rs"]
mod system;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tests::paths;
use tests::program::program;
use tests::share::TempDir;

use build::{BUILD_LIMIT, deb, packages, unpacked};

/// Everything in the packages but documentation, which may grow.
const FILES: [&str; 14] = [
    "/etc/apparmor.d/usr.libexec.virtiofsd",
    "/usr/bin/virtiofsd",
    "/usr/lib/systemd/system/virtiofsd@.service",
    "/usr/lib/systemd/system/virtiofsd@.socket",
    "/usr/lib/sysusers.d/virtiofsd-privsep.conf",
    "/usr/lib/tmpfiles.d/virtiofsd-privsep.conf",
    "/usr/libexec/virtiofsd",
    "/usr/share/bash-completion/completions/virtiofsd",
    "/usr/share/fish/vendor_completions.d/virtiofsd.fish",
    "/usr/share/lintian/overrides/virtiofsd-privsep",
    "/usr/share/man/man1/virtiofsd.1.gz",
    "/usr/share/man/man5/virtiofsd.toml.5.gz",
    "/usr/share/qemu/vhost-user/50-virtiofsd.json",
    "/usr/share/zsh/vendor-completions/_virtiofsd",
];

/// Where the RPM has a file in another place, or not at all.
const ONLY_DEB: [&str; 3] = [
    "/etc/apparmor.d/usr.libexec.virtiofsd",
    "/usr/share/lintian/overrides/virtiofsd-privsep",
    "/usr/share/zsh/vendor-completions/_virtiofsd",
];
const ONLY_RPM: [&str; 1] = ["/usr/share/zsh/site-functions/_virtiofsd"];

fn is_documentation(path: &str) -> bool {
    path.starts_with("/usr/share/doc/") || path.starts_with("/usr/share/licenses/")
}

fn set<'a>(paths: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    paths.into_iter().collect()
}

#[test]
fn the_deb_has_these_files_and_they_are_roots() {
    let list = program("dpkg-deb", "dpkg").args(["-c"]).args([deb().as_os_str()]).succeed();
    let mut found = BTreeSet::new();
    for line in list.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let path = words[5].trim_start_matches('.');
        assert_eq!(words[1], "root/root", "{line}");
        let program = path == "/usr/libexec/virtiofsd";
        match words[0] {
            "drwxr-xr-x" | "lrwxrwxrwx" => {}
            "-rwxr-xr-x" if program => {}
            "-rw-r--r--" if !program => {}
            _ => panic!("unexpected permissions: {line}"),
        }
        if !path.ends_with('/') && !is_documentation(path) {
            found.insert(path);
        }
    }
    assert_eq!(found, set(FILES));
}

#[test]
fn the_deb_takes_the_place_of_virtiofsd() {
    let deb = deb();
    let field = |name: &str| {
        program("dpkg-deb", "dpkg")
            .args(["-f".as_ref(), deb.as_os_str(), name.as_ref()])
            .succeed()
            .trim()
            .to_owned()
    };
    assert_eq!(field("Package"), "virtiofsd-privsep");
    assert_eq!(field("Provides"), "virtiofsd (= 1.14.0)");
    assert_eq!(field("Conflicts"), "virtiofsd");
    // QEMU 7.2 of Debian 12 has a manual page virtiofsd(1), for its own daemon, which may stay.
    let replaces = field("Replaces");
    assert_eq!(set(replaces.split(", ")), set(["virtiofsd", "qemu-system-common (<< 1:8.0)"]));
    // Nothing but the C library: the compiler's own unwinder is linked in (sandbox/build.rs).
    let depends = field("Depends");
    let libraries: Vec<_> = depends
        .split(", ")
        .filter(|one| one.starts_with("lib"))
        .map(|one| one.split(' ').next().unwrap())
        .collect();
    assert_eq!(libraries, ["libc6"], "{depends}");
}

#[test]
fn lintian_finds_nothing() {
    let changes = build::only(packages(), ".changes", " ");
    let arguments = ["--allow-root", "--display-info", "--fail-on", "error,warning,info"];
    // It takes machine code for text, in which any three letters may turn up; an override would be reported where
    // they don't.
    let without = ["--suppress-tags", "spelling-error-in-binary"];
    let said = program("lintian", "lintian").args(arguments).args(without).args([changes]).succeed();
    assert_eq!(said, "");
}

#[test]
fn the_rpm_has_the_same_files() {
    let rpm = build::only(packages(), ".rpm", " ");
    program("rpm", "rpm").args(["-K"]).args([rpm.as_os_str()]).succeed();
    let dir = TempDir::on_disk();
    let unpack = "rpm2cpio \"$0\" | cpio --quiet -idm";
    program("sh", "cpio").args(["-c", unpack]).args([rpm.as_os_str()]).dir(dir.path()).succeed();
    let list = program("rpm", "rpm").args(["-qpl"]).args([rpm.as_os_str()]).succeed();
    let is_directory = |path: &str| fs::symlink_metadata(dir.path().join(&path[1..])).unwrap().is_dir();
    let found: BTreeSet<_> =
        list.lines().filter(|path| !is_documentation(path) && !is_directory(path)).collect();
    let expected = FILES.into_iter().filter(|path| !ONLY_DEB.contains(path)).chain(ONLY_RPM);
    assert_eq!(found, set(expected));
    for path in ["usr/share/qemu/vhost-user/50-virtiofsd.json", "usr/lib/systemd/system/virtiofsd@.service"] {
        assert_eq!(fs::read(dir.path().join(path)).unwrap(), fs::read(unpacked().join(path)).unwrap());
    }
    let provides = program("rpm", "rpm").args(["-qp", "--provides"]).args([rpm.as_os_str()]).succeed();
    assert!(provides.lines().any(|line| line == "virtiofsd = 1.14.0"), "{provides}");
}

/// With rpm itself, in a root without other packages of rpm's: who provides what it requires cannot be asked there,
/// and the directories that are another package's in Fedora have to be made.
#[test]
fn the_rpm_installs_verifies_and_goes() {
    let file = build::only(packages(), ".rpm", " ");
    let root = container::clean_root();
    let rpm = |arguments: &[&str]| {
        let root = ["--root".as_ref(), root.path().as_os_str()];
        program("rpm", "rpm").args(root).args(["--dbpath=/var/lib/rpm", "--nodeps"]).args(arguments)
    };
    let inside = |command: &[&str]| program("chroot", "coreutils").arg(root.path()).args(command).succeed();
    let files = || -> BTreeSet<String> {
        let all =
            inside(&["find", "/", "-path", "/var/lib/rpm*", "-prune", "-o", "-printf", "%M %U:%G %p %l\\n"]);
        // The account tools' copies of what was there before.
        all.lines()
            .filter(|line| !(line.contains(" /etc/") && line.ends_with("- ")))
            .map(str::to_owned)
            .collect()
    };
    for directory in ["fish/vendor_completions.d", "zsh/site-functions", "licenses"] {
        fs::create_dir_all(root.path().join("usr/share").join(directory)).unwrap();
    }
    let before = files();
    rpm(&["--install"]).arg(&file).succeed();
    assert_eq!(rpm(&["--verify", "virtiofsd-privsep"]).succeed(), "", "all files are as packed");
    assert!(inside(&["virtiofsd", "--version"]).starts_with("virtiofsd "));
    assert!(inside(&["getent", "passwd", "virtiofsd"]).contains("nologin"));
    inside(&["getent", "group", "virtiofsd-clients"]);
    rpm(&["--erase", "virtiofsd-privsep"]).succeed();
    let after = files();
    let different: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(different.is_empty(), "it left a difference: {different:#?}");
}

#[test]
fn rpmlint_finds_nothing() {
    let packaging = paths::workspace().join("packaging/rpm");
    let rpm = build::only(packages(), ".rpm", " ");
    let filters = packaging.join("rpmlintrc.toml");
    let said =
        program("rpmlint", "rpmlint").args(["-c"]).args([filters.as_os_str(), rpm.as_os_str()]).succeed();
    assert!(said.contains(" 0 errors, 0 warnings"), "{said}");
}

#[test]
fn another_build_elsewhere_gives_the_same_bytes() {
    let copy = TempDir::on_disk();
    let top = paths::workspace();
    // A tree without git, at another path, as other users have it; the time is the only thing it can't know.
    let list = "git ls-files -z --cached --others --exclude-standard | tar --null -T - --ignore-failed-read -cf - \
                | tar -C \"$0\" -xf -";
    program("sh", "git").args(["-c", list]).args([copy.path().as_os_str()]).dir(top).succeed();
    let time = program("git", "git").args(["log", "-1", "--format=%ct"]).dir(top).succeed();
    let out = copy.path().join("a rather different place");
    program("sh", "dash")
        .args(["-c", "umask 077 && exec packaging/build rpm deb --output \"$0\""])
        .args([&out])
        .dir(copy.path())
        .env("SOURCE_DATE_EPOCH", time.trim())
        .env("TZ", "Pacific/Kiritimati")
        .env("LC_ALL", "C.UTF-8")
        .env("HOSTNAME", "elsewhere")
        .limit(BUILD_LIMIT)
        .succeed();
    // Asked for last: another test builds them meanwhile.
    let first = packages();
    for (end, but) in [("amd64.deb", "dbgsym"), (".deb", "privsep_"), (".rpm", " ")] {
        let (one, other) = (build::only(first, end, but), build::only(&out, end, but));
        assert!(fs::read(&one).unwrap() == fs::read(&other).unwrap(), "{} differs", one.display());
    }
}

#[test]
fn nothing_tells_where_it_was_built() {
    let binary = unpacked().join("usr/libexec/virtiofsd");
    let bytes = fs::read(binary).unwrap();
    let home = std::env::var("HOME").unwrap();
    for place in [paths::workspace(), Path::new(&home)] {
        let place = format!("{}/", place.display());
        let found = bytes.windows(place.len()).any(|window| window == place.as_bytes());
        assert!(!found, "the executable contains {place}");
    }
}
