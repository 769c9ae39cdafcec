//! The command line beside upstream's: the same words are accepted and refused, with the same exit status, but
//! for the differences that are listed with their reasons.
//!
//! The oracle is the binary of virtiofsd 1.13.3 in `$VIRTIOFSD_TEST_CACHE` (else `target/cache`). It looks at
//! `--modcaps` as root only, so these tests run as root.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use virtiofsd::config::cli::{self, Action};
use virtiofsd::config::{Activation, CliError, Environment};

/// What becomes of a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    /// With this exit status.
    Refused(i32),
}

use Verdict::{Accepted, Refused};

fn oracle() -> PathBuf {
    let cache = std::env::var_os("VIRTIOFSD_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cache"), PathBuf::from);
    let binary = cache.join("virtiofsd-1.13.3/bin/virtiofsd");
    assert!(
        binary.is_file(),
        "no virtiofsd 1.13.3 at {}: let the tests' set-up build it, or set VIRTIOFSD_TEST_CACHE",
        binary.display()
    );
    binary
}

/// Runs the oracle for at most 20 seconds, with no input and no RUST_LOG; its status and standard error.
fn run_oracle(words: &[&str]) -> (i32, String) {
    let output = Command::new("timeout")
        .arg("20")
        .arg(oracle())
        .args(words)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("timeout(1) of coreutils starts");
    let status = output.status.code().expect("no signal ended it");
    assert_ne!(status, 124, "{words:?}: still running after 20 s");
    (status, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn parse_ours(words: &[&str]) -> Result<Action, CliError> {
    let environment = Environment {
        rust_log: None,
        cpus: NonZero::<usize>::MIN,
        root: true,
        activation: Activation::default(),
    };
    cli::parse(["virtiofsd"].iter().chain(words).map(OsString::from), &environment)
}

fn our_verdict(words: &[&str]) -> Verdict {
    match parse_ours(words) {
        Ok(_) => Accepted,
        Err(error) => Refused(error.exit_status().into()),
    }
}

/// Grammar alone: `--print-capabilities` answers once all words are read.
const GRAMMAR: &[&str] = &["--print-capabilities"];

/// Everything up to the connection, which fails, since there is no such file descriptor.
const ALL_CHECKS: &[&str] = &["--shared-dir=/tmp", "--fd=999", "--sandbox=none", "--seccomp=none"];

/// What upstream says on standard error once it has accepted its configuration and acts on it: it has no
/// connection, or this machine does not let it have a capability that it was told to keep.
const STARTED: [&str; 2] = ["Failed to start daemon", "can't apply the child capabilities"];

/// Words, upstream's verdict, ours.
fn verdicts(base: &[&'static str], words: &[&'static str]) -> (Verdict, Verdict) {
    let words = [base, words].concat();
    let upstream = match run_oracle(&words) {
        (0, _) => Accepted,
        (1, log) if STARTED.iter().any(|message| log.contains(message)) => Accepted,
        (status, _) => Refused(status),
    };
    (upstream, our_verdict(&words))
}

/// Words that both accept or both refuse.
fn assert_same(base: &[&'static str], expected: Verdict, lines: &[&[&'static str]]) {
    for line in lines {
        assert_eq!(verdicts(base, line), (expected, expected), "{line:?}: (upstream, ours)");
    }
}

#[test]
fn the_same_words_are_accepted() {
    assert_same(
        GRAMMAR,
        Accepted,
        &[
            &[],
            &["--shared-dir", "/share"],
            &["--shared-dir=/share", "--shared-dir=/other"],
            &["--socket-path=/s"],
            &["--socket", "/s"],
            &["--socket=/a", "--socket-path=/s"],
            &["--fd", "3"],
            &["--fd=3"],
            &["--fd=0"],
            &["--tag=a"],
            &["--tag=abcdefghijklmnopqrstuvwxyz0123456789"],
            &["--thread-pool-size=0"],
            &["--thread-pool-size", "64"],
            &["--xattr"],
            &["--xattr", "--xattr"],
            &["--posix-acl"],
            &["--security-label"],
            &["--xattrmap=:map::user.virtiofs.:"],
            &[
                "--xattrmap",
                "/prefix/all/trusted./user.v./ /bad/server//trusted./\n/bad/client/user.v.// /ok/all///",
            ],
            &["--xattrmap= \n:ok:all:::\t"],
            &["--xattrmap=:unsupported:all:trusted.:trusted.::ok:all:::"],
            &["--xattrmap=üoküclientüüü:ok:all:::"],
            &["--sandbox=namespace"],
            &["--sandbox=CHROOT"],
            &["--sandbox", "none"],
            &["--seccomp=none"],
            &["--seccomp=kill"],
            &["--seccomp=log"],
            &["--seccomp=trap"],
            &["--readonly"],
            &["--announce-submounts", "--no-announce-submounts"],
            &["--inode-file-handles=never"],
            &["--inode-file-handles=prefer"],
            &["--inode-file-handles=fallback"],
            &["--inode-file-handles=mandatory"],
            &["--cache=auto"],
            &["--cache", "Always"],
            &["--cache=METADATA"],
            &["--cache=never", "--cache=auto"],
            &["--allow-mmap", "--no-readdirplus", "--writeback", "--allow-direct-io"],
            &["--modcaps=+mknod:-chown"],
            &["--modcaps", "+mknod"],
            &["--log-level=error"],
            &["--log-level=WARN"],
            &["--log-level=Info"],
            &["--log-level=debug"],
            &["--log-level=trace"],
            &["--log-level=off"],
            &["--syslog"],
            &["--rlimit-nofile=0"],
            &["--rlimit-nofile", "4096"],
            &["--killpriv-v2", "--no-killpriv-v2"],
            &["--uid-map=:0:100000:65536:", "--uid-map", ":65536:200000:1:"],
            &["--gid-map=/0/100000/65536/"],
            &["--uid-map= 0 100000 65536 "],
            &["--translate-uid=guest:0:1000:1", "--translate-uid", "host:1000:0:1"],
            &["--translate-gid=squash-guest:0:100:4294967295", "--translate-gid=squash-host:0:100:1"],
            &["--translate-uid=forbid-guest:0:1", "--translate-gid=MAP/0/1/1"],
            &["--preserve-noatime"],
            &["--migration-mode=find-paths"],
            &["--migration-mode=file-handles"],
            &["--migration-on-error=abort"],
            &["--migration-on-error=guest-error"],
            &["--migration-verify-handles", "--migration-confirm-paths"],
            &["-d", "-f"],
            &["-df"],
            &["-o", "source=/share"],
            &["-osource=/share,cache=none", "-o", "cache=metadata,sandbox=chroot,loglevel=err"],
            &["-o", "xattr,no_xattr,readdirplus,no_readdirplus,writeback,no_writeback"],
            &["-o", "allow_direct_io,no_allow_direct_io,announce_submounts,killpriv_v2,no_killpriv_v2"],
            &["-o", "posix_acl,no_posix_acl,security_label,no_security_label,no_posix_lock,no_flock"],
            &["-o", "modcaps=+mknod,xattrmap=:map::user.v.:"],
            &["-o", "modcaps=nonsense"],
        ],
    );
}

#[test]
fn the_same_words_are_refused() {
    assert_same(
        GRAMMAR,
        Refused(2),
        &[
            &["--bogus"],
            &["bogus"],
            &["-x"],
            &["--shared-dir"],
            &["--socket-path"],
            &["--fd=x"],
            &["--fd=3", "--socket-path=/s"],
            &["--fd=3", "--socket=/s"],
            &["--fd=3", "--socket-group=g"],
            &["--socket-path=/s", "--socket-group=g"],
            &["--tag="],
            &["--tag=abcdefghijklmnopqrstuvwxyz0123456789x"],
            &["--thread-pool-size=-1"],
            &["--thread-pool-size=many"],
            &["--xattr=on"],
            &["--posix-acl", "always"],
            &["--xattrmap"],
            &["--xattrmap="],
            &["--xattrmap= "],
            &["--xattrmap=:"],
            &["--xattrmap=:ok:all::"],
            &["--xattrmap=:OK:all:::"],
            &["--xattrmap=:ok:both:::"],
            &["--xattrmap=:map::user.v.::map::user.w.:"],
            &["--xattrmap=:map::user.v.: :ok:all:::"],
            &["--xattrmap=:ok:all:::/bad"],
            &["--sandbox=jail"],
            &["--seccomp=KILL"],
            &["--inode-file-handles", "never"],
            &["--inode-file-handles=Never"],
            &["--inode-file-handles="],
            &["--cache=none"],
            &["--cache="],
            &["--cache"],
            &["--modcaps", "-mknod"],
            &["--log-level=err"],
            &["--rlimit-nofile=-1"],
            &["--rlimit-nofile=1k"],
            &["--uid-map=0:1:2"],
            &["--uid-map=:0:1:"],
            &["--uid-map=:0:1:2:3:"],
            &["--uid-map=:0:1:x:"],
            &["--gid-map="],
            &["--gid-map=:0:1:4294967296:"],
            &["--translate-uid=0:1:2"],
            &["--translate-uid=gast:0:1:2"],
            &["--translate-uid=guest:0:1"],
            &["--translate-uid=forbid-guest:0:1:2"],
            &["--translate-gid=map:0:1:x"],
            &["--translate-gid="],
            &["--migration-mode=paths"],
            &["--migration-mode=Find-Paths"],
            &["--migration-on-error=ignore"],
            &["-o"],
            &["-o", ""],
            &["-o", "xattr,"],
            &["-o", "bogus"],
            &["-o", "bogus=1"],
            &["-o", "cache"],
            &["-o", "cache=never"],
            &["-o", "cache=AUTO"],
            &["-o", "sandbox=none"],
            &["-o", "loglevel=error"],
            &["-o", "no_announce_submounts"],
            &["-o", "posix_lock"],
            &["-o", "flock"],
            &["-o", "xattr=1"],
            &["-o", "xattrmap=:ok"],
            &["-o", "timeout=1"],
        ],
    );
}

#[test]
fn what_is_missing_is_missed_alike() {
    assert_same(
        &[],
        Refused(2),
        &[&[], &["--readonly"], &["--shared-dir=/tmp"], &["--fd=999"], &["-o", "source=/tmp"]],
    );
    assert_same(&[], Refused(1), &[&["--fd=999", "-o", "xattr"]]);
}

#[test]
fn the_same_configurations_are_accepted() {
    assert_same(
        ALL_CHECKS,
        Accepted,
        &[
            &[],
            &["--modcaps=+mknod:-chown:+sys_admin:+DAC_READ_SEARCH"],
            &["--modcaps=-setuid:+setuid:-sys_resource"],
            &[
                "--translate-uid=guest:0:1000:10",
                "--translate-uid=guest:10:2000:1",
                "--translate-uid=host:0:1000:10",
            ],
            &["--translate-uid=squash-guest:0:1001:4294967295", "--translate-uid=host:1001:1000:1"],
            &["--posix-acl", "--xattrmap=:ok:all:::"],
            &["--migration-mode=file-handles", "--migration-on-error=guest-error"],
            &["--migration-verify-handles", "--migration-confirm-paths"],
            &["-o", "modcaps=+sys_admin"],
        ],
    );
}

#[test]
fn the_same_configurations_are_refused() {
    assert_same(
        ALL_CHECKS,
        Refused(1),
        &[
            &["--modcaps="],
            &["--modcaps=mknod"],
            &["--modcaps=+bogus"],
            &["--modcaps=+mknod:"],
            &["--translate-uid=guest:0:1000:10", "--translate-uid=squash-guest:9:5:1"],
            &["--translate-gid=map:0:1000:10", "--translate-gid=host:1009:5:1"],
            &["--translate-uid=guest:1:0:4294967295"],
            &["--migration-mode=file-handles", "--migration-verify-handles"],
            &["--migration-mode=file-handles", "--migration-confirm-paths"],
            &["--uid-map=:0:0:1:", "--sandbox=namespace"],
            &["--gid-map=:0:0:1:"],
        ],
    );
}

/// A command line that upstream 1.13.3 judges otherwise.
struct Difference {
    base: &'static [&'static str],
    words: &'static [&'static str],
    upstream: Verdict,
    ours: Verdict,
    reason: &'static str,
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        base: GRAMMAR,
        words: &["--posix-acl=auto", "--security-label=never"],
        upstream: Refused(2),
        ours: Accepted,
        reason: "1.14.0 added the modes",
    },
    Difference {
        base: ALL_CHECKS,
        words: &["--posix-acl", "--translate-uid=map:0:1:1"],
        upstream: Refused(2),
        ours: Refused(1),
        reason: "1.14.0 decides by the mode, and so later",
    },
    Difference {
        base: GRAMMAR,
        words: &[
            "--num-request-queues=2",
            "--poll-us=10",
            "--landlock=full",
            "--worker-ids=identity",
            "--follow-mounts=never",
        ],
        upstream: Refused(2),
        ours: Accepted,
        reason: "they are our own",
    },
    Difference {
        base: GRAMMAR,
        words: &["--xattrmap=:ok:client:::"],
        upstream: Accepted,
        ours: Refused(2),
        reason: "a name without a rule ends upstream's daemon, so a guest could end it",
    },
    Difference {
        base: GRAMMAR,
        words: &["-o", "source=/a=b"],
        upstream: Refused(2),
        ours: Accepted,
        reason: "a path may have an equals sign",
    },
    Difference {
        base: GRAMMAR,
        words: &["--fd=-1"],
        upstream: Accepted,
        ours: Refused(2),
        reason: "no file descriptor has that number",
    },
    Difference {
        base: GRAMMAR,
        words: &["--thread-pool-size=65536"],
        upstream: Accepted,
        ours: Refused(2),
        reason: "everything has a limit",
    },
    Difference {
        base: ALL_CHECKS,
        words: &["--translate-uid=guest:0:1:4294967295"],
        upstream: Accepted,
        ours: Refused(1),
        reason: "the last guest id would become 4294967295, which means \"leave as it is\" to the kernel",
    },
    Difference {
        base: ALL_CHECKS,
        words: &["--modcaps=+sys_resource"],
        upstream: Accepted,
        ours: Refused(1),
        reason: "the worker has no capability of the host",
    },
    Difference {
        base: ALL_CHECKS,
        words: &["--modcaps=-dac_read_search"],
        upstream: Refused(1),
        ours: Accepted,
        reason: "it is the broker that opens file handles",
    },
    Difference {
        base: ALL_CHECKS,
        words: &["--modcaps=+CAP_MKNOD"],
        upstream: Refused(1),
        ours: Accepted,
        reason: "that is how capabilities(7) spells it",
    },
];

#[test]
fn the_differences_are_those_that_are_listed() {
    for Difference { base, words, upstream, ours, reason } in DIFFERENCES {
        assert_ne!(upstream, ours, "{words:?}: no difference, and so no reason: {reason}");
        assert_eq!(verdicts(base, words), (*upstream, *ours), "{words:?}: {reason}");
    }
}

/// What `--help` of the oracle says: options by their long names, with defaults.
fn options_of_the_oracle() -> BTreeMap<String, Option<String>> {
    let output = Command::new(oracle()).arg("--help").output().expect("the oracle runs");
    let help = String::from_utf8(output.stdout).expect("help is text");
    let mut options = BTreeMap::new();
    let mut current = None;
    for line in help.lines().map(str::trim) {
        let long = line.strip_prefix("--").or_else(|| line.split_once(", --").map(|(_, long)| long));
        if let Some(long) = long.filter(|_| line.starts_with('-')) {
            let name: String = long.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            options.insert(name.clone(), None);
            current = Some(name);
        }
        let default = line.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
        if let (Some((default, _)), Some(name)) = (default, &current) {
            options.insert(name.clone(), Some(default.to_owned()));
        }
    }
    options
}

#[test]
fn every_option_of_upstream_exists_with_its_default() {
    let mut command = cli::command();
    command.build();
    let options = options_of_the_oracle();
    assert!(options.len() >= 40, "its help was understood: {options:?}");
    let mut compared = 0;
    for (name, default) in options {
        let ours = command.get_arguments().find(|argument| argument.get_long() == Some(&name));
        let ours = ours.unwrap_or_else(|| panic!("--{name} is missing"));
        let takes_value = ours.get_action().takes_values();
        let our_default = ours.get_default_values().first().and_then(|value| value.to_str());
        if let (Some(default), Some(our_default), true) = (&default, our_default, takes_value) {
            assert_eq!(default, our_default, "--{name}");
            compared += 1;
        }
    }
    assert!(compared >= 8, "{compared} defaults were compared");
}

/// libvirt asks, and then writes its command line by the answer: what upstream says must be in ours.
#[test]
fn the_capabilities_include_upstreams() {
    let features = |json: &str| -> Vec<String> {
        let value: serde_json::Value = serde_json::from_str(json).expect("it is JSON");
        assert_eq!(value["type"], "fs");
        serde_json::from_value(value["features"].clone()).expect("features are strings")
    };
    let output = Command::new(oracle()).arg("--print-capabilities").output().expect("the oracle runs");
    let upstream = features(std::str::from_utf8(&output.stdout).expect("it is text"));
    let Ok(Action::PrintCapabilities(json)) = parse_ours(GRAMMAR) else { panic!("no answer") };
    let ours = features(&json);
    assert!(
        !upstream.is_empty() && upstream.iter().all(|feature| ours.contains(feature)),
        "{upstream:?} {ours:?}"
    );
}
