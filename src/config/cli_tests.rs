use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::PathBuf;

use super::*;
use crate::config::*;

fn environment() -> Environment {
    Environment {
        rust_log: None,
        cpus: NonZero::new(6).unwrap(),
        root: true,
        activation: Activation::default(),
    }
}

/// Parses words separated by spaces.
fn parse_in(environment: &Environment, line: &str) -> Result<Action, CliError> {
    parse(["virtiofsd"].into_iter().chain(line.split_whitespace()).map(OsString::from), environment)
}

fn run_in(environment: &Environment, line: &str) -> (Config, Vec<Warning>) {
    match parse_in(environment, &format!("--shared-dir /share --fd 3 {line}")) {
        Ok(Action::Run(config, warnings)) => (*config, warnings),
        other => panic!("{line}: {other:?}"),
    }
}

/// The configuration that these options make of `--shared-dir /share --fd 3`.
fn config(line: &str) -> Config {
    run_in(&environment(), line).0
}

fn warnings(line: &str) -> Vec<Warning> {
    run_in(&environment(), line).1
}

fn refused_in(environment: &Environment, line: &str) -> CliError {
    parse_in(environment, &format!("--shared-dir /share --fd 3 {line}")).expect_err(line)
}

fn refused(line: &str) -> CliError {
    refused_in(&environment(), line)
}

#[test]
fn defaults() {
    let (config, warnings) = run_in(&environment(), "");
    let expected = Config {
        shared_dir: "/share".into(),
        socket: SocketSource::Fd(3),
        confinement: Confinement {
            sandbox: SandboxMode::Namespace,
            seccomp: SeccompMode::Kill,
            landlock: LandlockMode::Free,
            worker_ids: WorkerIds::Auto,
            uid_map: vec![],
            gid_map: vec![],
            privileged: PrivilegedRequests::default(),
            worker_caps: BTreeSet::from(WorkerCapability::DEFAULT),
        },
        follow_mounts: FollowMounts::Auto,
        metrics: None,
        log: LogConfig { level: log::LevelFilter::Info, syslog: false },
        rlimit_nofile: None,
        worker: WorkerConfig {
            device: DeviceConfig {
                tag: None,
                num_request_queues: 6,
                thread_pool_size: 0,
                poll_us: 20,
                limits: Limits::default(),
            },
            fs: FsConfig {
                cache: CachePolicy::Auto,
                allow_mmap: false,
                readdirplus: true,
                writeback: false,
                allow_direct_io: false,
                xattr: false,
                posix_acl: Negotiate::Never,
                security_label: Negotiate::Never,
                xattrmap: None,
                readonly: false,
                announce_submounts: true,
                inode_file_handles: InodeFileHandles::Prefer,
                max_inodes: None,
                max_handles: None,
                killpriv_v2: false,
                preserve_noatime: false,
                locks: Locks::default(),
                ioctl: false,
                translate_uid: vec![],
                translate_gid: vec![],
                privileged: PrivilegedRequests::default(),
            },
            migration: MigrationConfig {
                mode: MigrationMode::FindPaths,
                on_error: MigrationOnError::Abort,
                verify_handles: false,
                confirm_paths: false,
            },
        },
    };
    assert_eq!(config, expected);
    assert_eq!(warnings, []);
}

#[test]
fn the_socket() {
    let socket = |line: &str| match parse_in(&environment(), &format!("--shared-dir /share {line}")) {
        Ok(Action::Run(config, _)) => config.socket,
        other => panic!("{line}: {other:?}"),
    };
    let path = |path: &str, group: Option<&str>| SocketSource::Path {
        path: PathBuf::from(path),
        group: group.map(str::to_owned),
    };
    assert_eq!(socket("--socket-path=/s"), path("/s", None));
    assert_eq!(socket("--socket-path /s --socket-group kvm"), path("/s", Some("kvm")));
    assert_eq!(socket("--socket /old"), path("/old", None));
    assert_eq!(socket("--socket /old --socket-path /s"), path("/s", None));
    assert_eq!(socket("--fd=0"), SocketSource::Fd(0));
    let longest = format!("/{}", "s".repeat(106));
    assert_eq!(socket(&format!("--socket-path {longest}")), path(&longest, None));
    let error = parse_in(&environment(), &format!("--shared-dir /share --socket-path {longest}s"));
    assert_eq!(error, Err(CliError::SocketPathTooLong(108)));
    for line in ["--shared-dir /share --socket-path=", "--shared-dir= --fd 3"] {
        assert!(matches!(parse_in(&environment(), line), Err(CliError::Usage(_))), "{line}");
    }
    assert_eq!(parse_in(&environment(), "-o source= --fd 3"), Err(CliError::NoSharedDir));
}

#[test]
fn paths_are_bytes() {
    use std::os::unix::ffi::OsStringExt;
    for words in [[&b"--shared-dir"[..], b"/\xff"], [b"-o", b"source=/\xff"]] {
        let words = [&b"virtiofsd"[..], b"--fd=3"].into_iter().chain(words);
        match parse(words.map(|word| OsString::from_vec(word.to_vec())), &environment()) {
            Ok(Action::Run(config, _)) => {
                assert_eq!(config.shared_dir, OsString::from_vec(b"/\xff".to_vec()))
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_switch_reaches_its_field() {
    assert!(config("--readonly").worker.fs.readonly);
    assert!(config("--allow-mmap").worker.fs.allow_mmap);
    assert!(!config("--no-readdirplus").worker.fs.readdirplus);
    assert!(config("--writeback").worker.fs.writeback);
    assert!(config("--allow-direct-io").worker.fs.allow_direct_io);
    assert!(config("--xattr").worker.fs.xattr);
    assert!(config("--killpriv-v2").worker.fs.killpriv_v2);
    assert!(config("--preserve-noatime").worker.fs.preserve_noatime);
    assert!(!config("--no-announce-submounts").worker.fs.announce_submounts);
    assert!(config("--syslog").log.syslog);
    assert_eq!(config("--tag=t").worker.device.tag.as_deref(), Some("t"));
    assert_eq!(config("--poll-us=50").worker.device.poll_us, 50);
    assert_eq!(config("--num-request-queues 63").worker.device.num_request_queues, 63);
    assert_eq!(config("--rlimit-nofile=0").rlimit_nofile, Some(0));
    assert_eq!(config("--rlimit-nofile 4096").rlimit_nofile, Some(4096));
    assert_eq!(config("--landlock=full").confinement.landlock, LandlockMode::Full);
    assert_eq!(config("--landlock=off").confinement.landlock, LandlockMode::Off);
    assert_eq!(config("--follow-mounts=always").follow_mounts, FollowMounts::Always);
    assert_eq!(config("--follow-mounts=never --sandbox=none").follow_mounts, FollowMounts::Never);
    assert_eq!(config("--worker-ids=identity").confinement.worker_ids, WorkerIds::Identity);
}

#[test]
fn every_mode_is_known() {
    let cache = |mode: &str| config(&format!("--cache={mode}")).worker.fs.cache;
    assert_eq!(cache("auto"), CachePolicy::Auto);
    assert_eq!(cache("Always"), CachePolicy::Always);
    assert_eq!(cache("METADATA"), CachePolicy::Metadata);
    assert_eq!(cache("never"), CachePolicy::Never);
    assert!(!config("--cache=never").worker.fs.readdirplus, "no place for the attributes");

    let sandbox = |mode: &str| config(&format!("--sandbox {mode}")).confinement.sandbox;
    assert_eq!(sandbox("namespace"), SandboxMode::Namespace);
    assert_eq!(sandbox("Chroot"), SandboxMode::Chroot);
    assert_eq!(sandbox("none"), SandboxMode::None);

    let seccomp = |mode: &str| config(&format!("--seccomp {mode}")).confinement.seccomp;
    assert_eq!(seccomp("none"), SeccompMode::None);
    assert_eq!(seccomp("kill"), SeccompMode::Kill);
    assert_eq!(seccomp("log"), SeccompMode::Log);
    assert_eq!(seccomp("trap"), SeccompMode::Trap);

    let handles = |mode: &str| config(&format!("--inode-file-handles={mode}")).worker.fs.inode_file_handles;
    assert_eq!(handles("never"), InodeFileHandles::Never);
    assert_eq!(handles("prefer"), InodeFileHandles::Prefer);
    assert_eq!(handles("fallback"), InodeFileHandles::Prefer);
    assert_eq!(handles("mandatory"), InodeFileHandles::Mandatory);
}

#[test]
fn attributes_are_implied() {
    for (options, acl, label) in [
        ("--posix-acl", Negotiate::Always, Negotiate::Never),
        ("--posix-acl=auto", Negotiate::Auto, Negotiate::Never),
        ("--security-label", Negotiate::Never, Negotiate::Always),
        ("--security-label=auto", Negotiate::Never, Negotiate::Auto),
        ("--xattrmap :map::user.v.:", Negotiate::Never, Negotiate::Never),
    ] {
        // The map has no space, so it is one word.
        let fs = config(options).worker.fs;
        assert!(fs.xattr, "{options}");
        assert_eq!((fs.posix_acl, fs.security_label), (acl, label), "{options}");
    }
    let fs = config("--posix-acl=never --security-label=never").worker.fs;
    assert!(!fs.xattr);
    assert_eq!(config("--xattrmap=:map::user.v.:").worker.fs.xattrmap.as_deref(), Some(":map::user.v.:"));
}

#[test]
fn the_last_one_counts() {
    assert_eq!(config("--cache=never --cache=always").worker.fs.cache, CachePolicy::Always);
    assert!(config("--xattr --xattr").worker.fs.xattr);
    assert!(!config("--announce-submounts --no-announce-submounts").worker.fs.announce_submounts);
    assert!(config("--no-announce-submounts --announce-submounts").worker.fs.announce_submounts);
    assert!(config("--no-killpriv-v2 --killpriv-v2").worker.fs.killpriv_v2);
    assert!(!config("--killpriv-v2 --no-killpriv-v2").worker.fs.killpriv_v2);
    assert_eq!(config("--posix-acl --posix-acl=never").worker.fs.posix_acl, Negotiate::Never);
    assert_eq!(config("--shared-dir /other").shared_dir, PathBuf::from("/other"));
}

#[test]
fn legacy_options() {
    let (config, warnings) = run_in(
        &environment(),
        "-o source=/legacy,cache=none,sandbox=chroot,loglevel=err,modcaps=+mknod -o xattrmap=:map::a.:,xattr,\
         no_readdirplus,writeback,allow_direct_io,killpriv_v2,security_label,no_posix_lock,no_flock",
    );
    assert_eq!(config.shared_dir, PathBuf::from("/legacy"));
    assert_eq!(config.confinement.sandbox, SandboxMode::Chroot);
    assert!(config.confinement.privileged.make_device && config.worker.fs.privileged.make_device);
    assert_eq!(config.log.level, log::LevelFilter::Error);
    let fs = config.worker.fs;
    assert_eq!(fs.cache, CachePolicy::Never);
    assert_eq!(fs.xattrmap.as_deref(), Some(":map::a.:"));
    assert!(fs.xattr && !fs.readdirplus && fs.writeback && fs.allow_direct_io && fs.killpriv_v2);
    assert_eq!((fs.posix_acl, fs.security_label), (Negotiate::Never, Negotiate::Always));
    assert_eq!(warnings, [Warning::DeprecatedLegacyOptions]);
}

#[test]
fn legacy_options_come_last() {
    assert_eq!(config("-o cache=none --cache=always").worker.fs.cache, CachePolicy::Never);
    let off =
        "no_xattr,readdirplus,no_writeback,no_allow_direct_io,no_killpriv_v2,no_posix_acl,no_security_label";
    let fs = config(&format!(
        "-o {off} --xattr --no-readdirplus --writeback --allow-direct-io --killpriv-v2 --posix-acl --security-label"
    ))
    .worker
    .fs;
    assert!(!fs.xattr && fs.readdirplus && !fs.writeback && !fs.allow_direct_io && !fs.killpriv_v2);
    assert_eq!((fs.posix_acl, fs.security_label), (Negotiate::Never, Negotiate::Never));
    assert!(config("--no-announce-submounts -o announce_submounts").worker.fs.announce_submounts);
}

#[test]
fn broken_legacy_options() {
    for item in [
        "",
        "xattr,",
        "bogus",
        "no_source",
        "no_no_xattr",
        "no_announce_submounts",
        "posix_lock",
        "flock",
        "cache",
        "cache=",
        "cache=never",
        "cache=AUTO",
        "sandbox=none",
        "loglevel=error",
        "loglevel=trace",
        "xattr=on",
        "xattrmap=x",
        "writeback=1",
        "Xattr",
        "timeout=1",
    ] {
        let words = ["virtiofsd", "--shared-dir=/share", "--fd=3", "-o", item].map(OsString::from);
        let error = parse(words.into_iter(), &environment()).expect_err(item);
        assert!(matches!(error, CliError::Legacy { .. }), "{item}: {error}");
        assert_eq!(error.exit_status(), 2, "{item}");
    }
    let error = refused("-o xattr,xattrmap=:ok:some:::");
    let expected = "-o xattrmap=:ok:some:::: rule 1, column 5: \"some\" is not a scope; use client, server or all\n    \
                    :ok:some:::\n        ^";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn deprecated_ones_are_told() {
    assert_eq!(warnings("-f"), [Warning::DeprecatedForeground]);
    assert_eq!(warnings("-d"), [Warning::DeprecatedDebug]);
    assert_eq!(warnings("-o xattr -o no_xattr"), [Warning::DeprecatedLegacyOptions]);
    assert_eq!(warnings("--inode-file-handles=fallback"), [Warning::DeprecatedFallback]);
    assert_eq!(warnings("--inode-file-handles=fallback --inode-file-handles=prefer"), []);
    match parse_in(&environment(), "--shared-dir /share --socket /s") {
        Ok(Action::Run(_, warnings)) => assert_eq!(warnings, [Warning::DeprecatedSocket]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_log_level_and_what_overrides_it() {
    use log::LevelFilter::*;
    let level = |line: &str| config(line).log.level;
    for (name, expected) in
        [("off", Off), ("error", Error), ("WARN", Warn), ("info", Info), ("Debug", Debug), ("trace", Trace)]
    {
        assert_eq!(level(&format!("--log-level={name}")), expected);
    }
    assert_eq!(level("--log-level=trace -d"), Debug);
    assert_eq!(level("--log-level=trace -o loglevel=warn"), Warn);
    let environment = Environment { rust_log: Some("error".into()), ..environment() };
    assert_eq!(run_in(&environment, "--log-level=trace -d").0.log.level, Error);
    let environment = Environment { rust_log: Some("virtiofsd=loud".into()), ..environment };
    assert_eq!(run_in(&environment, "").1, [Warning::RustLogDirective("virtiofsd=loud".into())]);
}

#[test]
fn request_queues_by_default() {
    for (cpus, queues) in [(1, 1), (63, 63), (64, 63), (1 << 20, 63)] {
        let environment = Environment { cpus: NonZero::new(cpus).unwrap(), ..environment() };
        assert_eq!(run_in(&environment, "").0.worker.device.num_request_queues, queues);
    }
}

#[test]
fn ids() {
    let user = Environment { root: false, ..environment() };
    let confinement =
        run_in(&user, "--uid-map=:0:1000:1: --uid-map :1:100000:65535: --gid-map /0/1000/1/").0.confinement;
    assert_eq!(
        confinement.uid_map,
        [
            IdMapEntry { inner: 0, outer: 1000, count: 1 },
            IdMapEntry { inner: 1, outer: 100_000, count: 65_535 }
        ]
    );
    assert_eq!(confinement.gid_map, [IdMapEntry { inner: 0, outer: 1000, count: 1 }]);

    let error = refused("--gid-map=:0:1000:1:");
    assert_eq!(error, CliError::IdMapAsRoot { option: "--gid-map" });
    let error = refused_in(&user, "--uid-map=:0:1000:1: --sandbox=chroot");
    assert_eq!(error, CliError::NeedsNamespace { option: "--uid-map" });
    assert!(matches!(refused_in(&user, "--uid-map=:0:1:1: --uid-map=:0:2:1:"), CliError::IdMap { .. }));
    assert!(matches!(refused_in(&user, "--uid-map=:0:1:1: --worker-ids=auto"), CliError::Usage(_)));
    assert_eq!(refused("--worker-ids=shifted --sandbox=none").exit_status(), 1);
    assert_eq!(refused("--follow-mounts=always --sandbox=none"), CliError::FollowNeedsNamespace);

    let fs =
        config("--translate-uid=map:0:1000:1 --translate-uid host:5:6:7 --translate-gid=forbid-guest:0:1")
            .worker
            .fs;
    assert_eq!(fs.translate_uid.len(), 2);
    assert_eq!(fs.translate_gid, [IdTranslation::ForbidGuest { guest: 0, count: 1 }]);
    assert!(matches!(warnings("--translate-uid=map:0:1:0")[..], [Warning::EmptyTranslation { .. }]));
}

#[test]
fn modcaps() {
    let confinement = config("--modcaps=+sys_admin:-chown:+mknod:-mknod").confinement;
    assert_eq!(confinement.privileged, PrivilegedRequests { make_device: false, trusted_xattr: true });
    assert!(!confinement.worker_caps.contains(&WorkerCapability::Chown));
    assert_eq!(warnings("--modcaps=+net_raw"), [Warning::CapabilityUnneeded("net_raw".into())]);
}

#[test]
fn a_bypass_in_the_xattr_map_is_told() {
    let words =
        ["virtiofsd", "--shared-dir=/s", "--fd=3", "--xattrmap", "/prefix/all/trusted./user.v./ /ok/all///"];
    match parse(words.map(OsString::from).into_iter(), &environment()) {
        Ok(Action::Run(_, warnings)) => {
            assert_eq!(warnings, [Warning::XattrMapBypass("/prefix/all/trusted./user.v./".into())]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn exit_status_2_for_wrong_words() {
    for line in [
        "--bogus",
        "bogus",
        "--cache=none",
        "--cache",
        "--sandbox=jail",
        "--seccomp=KILL",
        "--tag=",
        "--fd=-1",
        "--fd=x",
        "--inode-file-handles never",
        "--inode-file-handles=Never",
        "--posix-acl=yes",
        "--xattr=yes",
        "--socket-path=/s",
        "--socket=/s",
        "--socket-group=g",
        "--xattrmap=:",
        "--log-level=loud",
        "--rlimit-nofile=-1",
        "--thread-pool-size=-1",
        "--uid-map=0:1:2",
        "--translate-uid=0:1:2",
        "--translate-gid=map:1:2",
        "--migration-mode=paths",
        "--migration-on-error=ignore",
        "--modcaps -mknod",
        "--num-request-queues=0",
        "--num-request-queues=65",
        "--poll-us=1000001",
        "--landlock=on",
        "--follow-mounts=on",
        "--worker-ids=shifted:1:0",
        "-x",
        "-o",
    ] {
        let error = refused(line);
        assert_eq!(error.exit_status(), 2, "{line}: {error}");
    }
    for line in ["--fd=3", "--shared-dir=/share", "-o source=/share", "--readonly"] {
        assert_eq!(parse_in(&environment(), line).expect_err(line).exit_status(), 2, "{line}");
    }
    assert_eq!(refused(&format!("--tag={}", "t".repeat(37))).exit_status(), 2);
    assert!(config(&format!("--tag={}", "t".repeat(36))).worker.device.tag.is_some());
}

#[test]
fn exit_status_1_for_what_does_not_go_together() {
    for line in [
        "--modcaps=",
        "--modcaps=mknod",
        "--modcaps=+bogus",
        "--modcaps=+sys_resource",
        "-o modcaps=+",
        "--migration-mode=file-handles --migration-confirm-paths",
        "--migration-mode=file-handles --migration-verify-handles",
        "--posix-acl --translate-uid=map:1:2:3",
        "--posix-acl=auto --translate-gid=map:1:2:3",
        "--translate-uid=map:1:2:3 --translate-uid=guest:3:9:1",
        "--translate-gid=guest:1:2:4294967295",
    ] {
        let error = refused(line);
        assert_eq!(error.exit_status(), 1, "{line}: {error}");
    }
    let error = parse_in(&environment(), "--fd=3 -o xattr").unwrap_err();
    assert_eq!((&error, error.exit_status()), (&CliError::NoSharedDir, 1));
}

#[test]
fn errors_say_what_where_and_what_to_do() {
    let text = refused("--cache=none").to_string();
    assert!(text.starts_with("invalid value 'none' for '--cache <POLICY>'"), "{text}");
    assert!(text.contains("auto, always, metadata, never"), "{text}");
    let text = refused("--translate-uid=guest:1:2").to_string();
    assert!(text.contains("guest takes 3 numbers, not 2: guest:GUEST:HOST:COUNT"), "{text}");
    let text = refused("--xattrmap=:ok:all:a:").to_string();
    assert!(text.contains("rule 1, column 11"), "{text}");
    let text = refused("--modcaps=+SYS_RESOURCE").to_string();
    assert!(text.starts_with("--modcaps: +SYS_RESOURCE cannot be given: the kernel"), "{text}");
    let text = refused("--translate-uid=map:0:1:9 --translate-uid=guest:8:1:1").to_string();
    assert!(text.starts_with("--translate-uid: map:0:1:9 and guest:8:1:1 overlap"), "{text}");
}

#[test]
fn questions_need_no_other_option() {
    let json = Action::PrintCapabilities(vhost_user_json::document());
    assert_eq!(parse_in(&environment(), "--print-capabilities"), Ok(json.clone()));
    assert_eq!(parse_in(&environment(), "--print-capabilities --shared-dir /share -o xattr"), Ok(json));
    assert_eq!(parse_in(&environment(), "--print-capabilities -o bogus").unwrap_err().exit_status(), 2);

    for line in ["--help", "-h", "--help --bogus"] {
        match parse_in(&environment(), line) {
            Ok(Action::Help(text)) => assert!(text.contains("--shared-dir <DIR>"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    for line in ["--version", "-V"] {
        let version = concat!("virtiofsd ", env!("CARGO_PKG_VERSION"), "\n").to_owned();
        assert_eq!(parse_in(&environment(), line), Ok(Action::Version(version)));
    }
    match parse_in(&environment(), "") {
        Err(error @ CliError::NoArguments(_)) => {
            assert_eq!(error.exit_status(), 2);
            assert!(error.to_string().contains("Usage: virtiofsd --shared-dir"));
        }
        other => panic!("{other:?}"),
    }
}

/// A configuration file for the time of a test.
fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// Parses words after `--config FILE`.
fn with_file(text: &str, environment: &Environment, line: &str) -> Result<Action, CliError> {
    let file = file(text);
    parse_in(environment, &format!("--config {} {line}", file.path().display()))
}

fn configured(text: &str, line: &str) -> Config {
    match with_file(text, &environment(), line) {
        Ok(Action::Run(config, _)) => *config,
        other => panic!("{text} {line}: {other:?}"),
    }
}

#[test]
fn a_file_says_what_a_command_line_would() {
    let text = "shared-dir = '/share'\nfd = 3\ncache = 'always'\nxattr = true\nposix-acl = 'auto'\n\
                worker-ids = 'shifted:100000:65536'\nfollow-mounts = 'never'\npoll-us = 50\nannounce-submounts = false\n\
                modcaps = '+mknod'\n";
    let line = "--cache=always --xattr --posix-acl=auto --worker-ids=shifted:100000:65536 --follow-mounts=never --poll-us=50 \
                --no-announce-submounts --modcaps=+mknod";
    assert_eq!(configured(text, ""), config(line));
}

#[test]
fn the_command_line_overrides_the_file() {
    let text = "shared-dir = '/a'\nsocket-path = '/s'\nsocket-group = 'kvm'\ncache = 'always'\n\
                translate-uid = ['guest:0:1:1', 'guest:1:2:1']\nannounce-submounts = true\n";
    let config =
        configured(text, "--shared-dir=/b --fd=5 --translate-uid=guest:7:8:1 --no-announce-submounts");
    assert_eq!(config.shared_dir, PathBuf::from("/b"));
    assert_eq!(config.socket, SocketSource::Fd(5));
    assert_eq!(config.worker.fs.cache, CachePolicy::Always);
    assert_eq!(config.worker.fs.translate_uid, [IdTranslation::Guest { guest: 7, host: 8, count: 1 }]);
    assert!(!config.worker.fs.announce_submounts);
    let ids = configured("shared-dir = '/a'\nfd = 3\nuid-map = ':0:1:1:'", "--worker-ids=shifted");
    assert!(ids.confinement.uid_map.is_empty());
}

#[test]
fn what_does_not_go_together_in_a_file_is_refused_as_on_a_command_line() {
    let error = with_file("shared-dir = '/a'\nfd = 3\nsocket-path = '/s'", &environment(), "").unwrap_err();
    assert!(error.to_string().contains("cannot be used with"), "{error}");
    let error = with_file("cache = 'never'\nfd = 3", &environment(), "").unwrap_err();
    assert!(error.to_string().contains("--shared-dir"), "{error}");
    let error = with_file("cache = 'none'", &environment(), "").unwrap_err();
    assert_eq!(error.exit_status(), 2);
    let error = parse_in(&environment(), "--config /nowhere.toml").unwrap_err();
    assert!(error.to_string().contains("/nowhere.toml"), "{error}");
}

#[test]
fn a_socket_from_systemd_comes_between_file_and_command_line() {
    let passed = Environment { activation: Activation { device: vec![3], metrics: vec![] }, ..environment() };
    let socket = |text: &str, line: &str| match with_file(text, &passed, line) {
        Ok(Action::Run(config, warnings)) => (config.socket, warnings),
        other => panic!("{line}: {other:?}"),
    };
    let both = "shared-dir = '/a'\nsocket-path = '/s'\nsocket-group = 'kvm'";
    assert_eq!(socket("shared-dir = '/a'", ""), (SocketSource::Fd(3), vec![]));
    assert_eq!(socket(both, ""), (SocketSource::Fd(3), vec![]));
    assert_eq!(socket(both, "--fd=3"), (SocketSource::Fd(3), vec![]));
    let (named, warnings) = socket("shared-dir = '/a'", "--socket-path=/t");
    assert_eq!(named, SocketSource::Path { path: "/t".into(), group: None });
    assert_eq!(warnings, [Warning::PassedSocketUnused]);
    let metrics =
        Environment { activation: Activation { device: vec![], metrics: vec![4] }, ..environment() };
    assert_eq!(run_in(&metrics, "").0.metrics, Some(SocketSource::Fd(4)));
    let named = run_in(&metrics, "--metrics-socket /m").0.metrics;
    assert_eq!(named, Some(SocketSource::Path { path: "/m".into(), group: None }));
    let two = Environment { activation: Activation { device: vec![3, 4], metrics: vec![] }, ..environment() };
    assert_eq!(with_file("shared-dir = '/a'", &two, "").unwrap_err(), CliError::ManySockets(2));
}

#[test]
fn checking_a_file_needs_no_socket_and_has_one_status_for_all_errors() {
    let check = |text: &str, line: &str| {
        let file = file(text);
        parse_in(&environment(), &format!("{line} --check-config {}", file.path().display()))
    };
    assert!(
        matches!(check("shared-dir = '/a'", ""), Ok(Action::Checked(text, _)) if text.ends_with("shares /a\n"))
    );
    assert!(matches!(check("shared-dir = '/a'\nsocket-path = '/s'", ""), Ok(Action::Checked(..))));
    for wrong in
        ["", "shared-dir = 3.5", "shared-dir = '/a'\nmodcaps = 'x'", "shared-dir = '/a'\ntag", "x = 1"]
    {
        assert_eq!(check(wrong, "").unwrap_err().exit_status(), 2, "{wrong}");
    }
    let of_config = with_file("shared-dir = '/a'", &environment(), "--check-config");
    assert!(matches!(of_config, Ok(Action::Checked(..))));
    let line = parse_in(&environment(), "--shared-dir /a --check-config");
    assert!(matches!(line, Ok(Action::Checked(text, _)) if text.starts_with("the command line: ok")));
}
