//! From the options, each of them well-formed, to one [`Config`] whose parts go together.

use std::path::PathBuf;

use log::LevelFilter;

use super::error::{CliError, MAX_SOCKET_PATH};
use super::id_translation::IdTranslator;
use super::modcaps::Privileges;
use super::options::{MAX_REQUEST_QUEUES, Options};
use super::{
    CachePolicy, Config, Confinement, DeviceConfig, Environment, FollowMounts, FsConfig, IdMapEntry,
    IdTranslation, Limits, LockKind, Locks, LogConfig, MigrationConfig, MigrationMode, Negotiate,
    SandboxMode, SocketSource, Warning, WorkerConfig, WorkerIds, id_map, log_level,
};

/// Builds the configuration. `-o` has been applied.
pub(super) fn build(
    options: Options,
    environment: &Environment,
    warnings: &mut Vec<Warning>,
) -> Result<Config, CliError> {
    let privileges = match &options.modcaps {
        Some(modcaps) => Privileges::parse(modcaps, warnings)?,
        None => Privileges::default(),
    };
    if options.follow_mounts == FollowMounts::Always && options.sandbox != SandboxMode::Namespace {
        return Err(CliError::FollowNeedsNamespace);
    }
    let config = Config {
        follow_mounts: options.follow_mounts,
        shared_dir: shared_dir(&options)?,
        socket: socket(&options)?,
        metrics: metrics_socket(&options, environment)?,
        log: log(&options, environment, warnings),
        rlimit_nofile: options.rlimit_nofile,
        worker: WorkerConfig {
            device: device(&options, environment),
            migration: migration(&options)?,
            fs: fs(&options, &privileges, warnings)?,
        },
        confinement: confinement(options, privileges, environment)?,
    };
    Ok(config)
}

fn shared_dir(options: &Options) -> Result<PathBuf, CliError> {
    options.shared_dir.clone().filter(|dir| !dir.as_os_str().is_empty()).ok_or(CliError::NoSharedDir)
}

fn socket(options: &Options) -> Result<SocketSource, CliError> {
    if let Some(fd) = options.fd {
        return Ok(SocketSource::Fd(fd));
    }
    let path = options.socket_path.clone().or_else(|| options.socket.clone()).ok_or(CliError::NoSocket)?;
    match path.as_os_str().len() {
        0..=MAX_SOCKET_PATH => Ok(SocketSource::Path { path, group: options.socket_group.clone() }),
        length => Err(CliError::SocketPathTooLong(length)),
    }
}

/// `--metrics-socket`, or else one that the service manager passed for metrics.
fn metrics_socket(options: &Options, environment: &Environment) -> Result<Option<SocketSource>, CliError> {
    let Some(path) = options.metrics_socket.clone() else {
        return match environment.activation.metrics.as_slice() {
            [] => Ok(None),
            [fd] => Ok(Some(SocketSource::Fd(*fd))),
            more => Err(CliError::ManyMetricsSockets(more.len())),
        };
    };
    match path.as_os_str().len() {
        0..=MAX_SOCKET_PATH => Ok(Some(SocketSource::Path { path, group: options.socket_group.clone() })),
        length => Err(CliError::MetricsSocketPathTooLong(length)),
    }
}

fn log(options: &Options, environment: &Environment, warnings: &mut Vec<Warning>) -> LogConfig {
    let asked_for = if options.legacy_debug { LevelFilter::Debug } else { options.log_level };
    let rust_log = log_level::from_rust_log(environment.rust_log.as_deref(), warnings);
    LogConfig { level: rust_log.unwrap_or(asked_for), syslog: options.syslog }
}

fn device(options: &Options, environment: &Environment) -> DeviceConfig {
    let one_for_each_cpu =
        u16::try_from(environment.cpus.get()).unwrap_or(MAX_REQUEST_QUEUES).min(MAX_REQUEST_QUEUES);
    DeviceConfig {
        tag: options.tag.clone(),
        num_request_queues: options.num_request_queues.unwrap_or(one_for_each_cpu),
        thread_pool_size: options.thread_pool_size,
        poll_us: options.poll_us,
        limits: Limits { operations: options.limit_ops, bandwidth: options.limit_bandwidth },
    }
}

fn migration(options: &Options) -> Result<MigrationConfig, CliError> {
    if options.migration_mode == MigrationMode::FileHandles {
        for (given, option) in [
            (options.migration_confirm_paths, "--migration-confirm-paths"),
            (options.migration_verify_handles, "--migration-verify-handles"),
        ] {
            if given {
                return Err(CliError::NotWithFileHandles { option });
            }
        }
    }
    Ok(MigrationConfig {
        mode: options.migration_mode,
        on_error: options.migration_on_error,
        verify_handles: options.migration_verify_handles,
        confirm_paths: options.migration_confirm_paths,
    })
}

fn fs(options: &Options, privileges: &Privileges, warnings: &mut Vec<Warning>) -> Result<FsConfig, CliError> {
    check_translation("--translate-uid", &options.translate_uid, options.posix_acl, warnings)?;
    check_translation("--translate-gid", &options.translate_gid, options.posix_acl, warnings)?;
    if let Some(xattrmap) = &options.xattrmap {
        let bypasses = xattrmap.map.bypasses(&xattrmap.text);
        warnings.extend(bypasses.into_iter().map(|rule| Warning::XattrMapBypass(rule.to_owned())));
    }
    let needs_xattr = options.xattrmap.is_some()
        || options.posix_acl != Negotiate::Never
        || options.security_label != Negotiate::Never;
    Ok(FsConfig {
        cache: options.cache,
        allow_mmap: options.allow_mmap,
        // Without a cache there is no place for the attributes that come along.
        readdirplus: !options.no_readdirplus && options.cache != CachePolicy::Never,
        writeback: options.writeback,
        allow_direct_io: options.allow_direct_io,
        xattr: options.xattr || needs_xattr,
        posix_acl: options.posix_acl,
        security_label: options.security_label,
        xattrmap: options.xattrmap.as_ref().map(|xattrmap| xattrmap.text.clone()),
        readonly: options.readonly,
        announce_submounts: !options.no_announce_submounts,
        inode_file_handles: options.inode_file_handles,
        max_inodes: options.max_inodes,
        max_handles: options.max_handles,
        killpriv_v2: options.killpriv_v2,
        preserve_noatime: options.preserve_noatime,
        locks: Locks {
            posix: options.locks.contains(&LockKind::Posix),
            flock: options.locks.contains(&LockKind::Flock),
        },
        ioctl: options.ioctl,
        translate_uid: options.translate_uid.clone(),
        translate_gid: options.translate_gid.clone(),
        privileged: privileges.requests,
    })
}

fn check_translation(
    option: &'static str,
    rules: &[IdTranslation],
    posix_acl: Negotiate,
    warnings: &mut Vec<Warning>,
) -> Result<(), CliError> {
    if posix_acl != Negotiate::Never && !rules.is_empty() {
        return Err(CliError::AclWithTranslation { option });
    }
    IdTranslator::new(rules).map_err(|problem| CliError::Translation { option, problem })?;
    let empty = rules.iter().filter(|rule| rule.count() == 0);
    warnings.extend(empty.map(|rule| Warning::EmptyTranslation { option, rule: rule.to_string() }));
    Ok(())
}

fn confinement(
    options: Options,
    privileges: Privileges,
    environment: &Environment,
) -> Result<Confinement, CliError> {
    check_id_map("--uid-map", &options.uid_map, options.sandbox, environment)?;
    check_id_map("--gid-map", &options.gid_map, options.sandbox, environment)?;
    let needs_namespace = match options.worker_ids {
        WorkerIds::Auto | WorkerIds::Identity => None,
        WorkerIds::Shifted { .. } => Some("--worker-ids=shifted"),
        WorkerIds::Subids(_) => Some("--worker-ids=subids"),
    };
    if let Some(option) = needs_namespace.filter(|_| options.sandbox != SandboxMode::Namespace) {
        return Err(CliError::NeedsNamespace { option });
    }
    Ok(Confinement {
        sandbox: options.sandbox,
        seccomp: options.seccomp,
        landlock: options.landlock,
        worker_ids: options.worker_ids,
        uid_map: options.uid_map,
        gid_map: options.gid_map,
        privileged: privileges.requests,
        worker_caps: privileges.worker_caps,
    })
}

fn check_id_map(
    option: &'static str,
    map: &[IdMapEntry],
    sandbox: SandboxMode,
    environment: &Environment,
) -> Result<(), CliError> {
    if map.is_empty() {
        return Ok(());
    }
    if sandbox != SandboxMode::Namespace {
        return Err(CliError::NeedsNamespace { option });
    }
    if environment.root {
        return Err(CliError::IdMapAsRoot { option });
    }
    id_map::check(map).map_err(|problem| CliError::IdMap { option, problem })
}
