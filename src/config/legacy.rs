//! `-o NAME,NAME=VALUE,…`: the options of the C virtiofsd, which libvirt still uses.
//!
//! They count as if they came after all other options, wherever they stand.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::{ffi::OsString, str};

use log::LevelFilter;

use super::error::CliError;
use super::options::{Options, XattrMapArg};
use super::xattrmap::ParseError;
use super::{CachePolicy, Negotiate, SandboxMode};

/// Why an item of `-o` is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LegacyError {
    /// Not in the list.
    #[error("there is no such option; -o takes {ITEMS}")]
    Unknown,
    /// A value out of the list.
    #[error("the value is not one of {0}")]
    Value(&'static str),
    /// A value that must be text.
    #[error("the value is not valid UTF-8")]
    NotText,
    /// `xattrmap=`
    #[error("{0}")]
    XattrMap(#[from] ParseError),
}

const ITEMS: &str = "source=, cache=, sandbox=, loglevel=, modcaps=, xattrmap=, announce_submounts, no_posix_lock, \
     no_flock, and with or without \"no_\" before them xattr, readdirplus, writeback, allow_direct_io, killpriv_v2, \
     posix_acl and security_label";

/// Applies one argument of `-o`.
pub(super) fn apply(options: &mut Options, argument: &OsStr) -> Result<(), CliError> {
    for item in argument.as_bytes().split(|byte| *byte == b',') {
        let mut parts = item.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let done = match parts.next() {
            Some(value) => set_value(options, name, value),
            None => set_flag(options, name),
        };
        done.map_err(|problem| CliError::Legacy {
            item: String::from_utf8_lossy(item).into_owned(),
            problem,
        })?;
    }
    Ok(())
}

fn set_value(options: &mut Options, name: &[u8], value: &[u8]) -> Result<(), LegacyError> {
    match name {
        b"source" => options.shared_dir = Some(PathBuf::from(OsString::from_vec(value.to_vec()))),
        b"cache" => {
            options.cache = match value {
                b"auto" => CachePolicy::Auto,
                b"always" => CachePolicy::Always,
                b"metadata" => CachePolicy::Metadata,
                b"none" => CachePolicy::Never,
                _ => return Err(LegacyError::Value("auto, always, metadata and none")),
            }
        }
        b"sandbox" => {
            options.sandbox = match value {
                b"namespace" => SandboxMode::Namespace,
                b"chroot" => SandboxMode::Chroot,
                _ => return Err(LegacyError::Value("namespace and chroot")),
            }
        }
        b"loglevel" => {
            options.log_level = match value {
                b"debug" => LevelFilter::Debug,
                b"info" => LevelFilter::Info,
                b"warn" => LevelFilter::Warn,
                b"err" => LevelFilter::Error,
                _ => return Err(LegacyError::Value("debug, info, warn and err")),
            }
        }
        b"modcaps" => options.modcaps = Some(as_text(value)?.to_owned()),
        b"xattrmap" => options.xattrmap = Some(as_text(value)?.parse::<XattrMapArg>()?),
        _ => return Err(LegacyError::Unknown),
    }
    Ok(())
}

fn as_text(value: &[u8]) -> Result<&str, LegacyError> {
    str::from_utf8(value).map_err(|_| LegacyError::NotText)
}

fn set_flag(options: &mut Options, item: &[u8]) -> Result<(), LegacyError> {
    let (name, on) = item.strip_prefix(b"no_").map_or((item, true), |name| (name, false));
    let negotiate = if on { Negotiate::Always } else { Negotiate::Never };
    match name {
        b"xattr" => options.xattr = on,
        b"readdirplus" => options.no_readdirplus = !on,
        b"writeback" => options.writeback = on,
        b"allow_direct_io" => options.allow_direct_io = on,
        b"killpriv_v2" => options.killpriv_v2 = on,
        b"posix_acl" => options.posix_acl = negotiate,
        b"security_label" => options.security_label = negotiate,
        b"announce_submounts" if on => options.no_announce_submounts = false,
        // There were locks once, on by default.
        b"posix_lock" | b"flock" if !on => {}
        _ => return Err(LegacyError::Unknown),
    }
    Ok(())
}
