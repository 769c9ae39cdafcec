//! `TrustedXattr` (`--modcaps=+sys_admin`): `trusted.*` attributes, for which the kernel wants `CAP_SYS_ADMIN` in
//! the host's user namespace.
//!
//! Only names that the xattr map can produce are touched or shown. The file is reached through `/proc/self/fd`,
//! because the fd may be an `O_PATH` one, which the `f*xattr` calls refuse; the path has nothing of the worker's.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::Server;
use crate::broker::sys;
use crate::config::xattrmap::XattrMap;
use crate::protocol::ToWorker;
use crate::protocol::bounded::Bytes;
use crate::protocol::message::{TrustedXattr, XATTR_LIST_MAX, XATTR_SIZE_MAX, XattrReply, XattrSetMode};
use crate::protocol::name::TRUSTED_PREFIX;

/// Which `trusted.*` names of the host a guest's names can become.
#[derive(Clone, Debug)]
pub enum TrustedNames {
    /// No map: all of them.
    All,
    /// Those that some guest name becomes.
    Mapped(XattrMap),
    /// None.
    None,
}

impl TrustedNames {
    /// Those of `--xattrmap`. Its text was checked with the configuration; one that is wrong all the same allows
    /// nothing.
    pub fn of(xattrmap: Option<&str>) -> Self {
        match xattrmap.map(str::parse) {
            None => Self::All,
            Some(Ok(map)) => Self::Mapped(map),
            Some(Err(_)) => Self::None,
        }
    }

    fn allows(&self, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Mapped(map) => map.can_produce(name),
        }
    }
}

/// Acts on `file`, any fd on a mount of the share.
pub(super) fn trusted_xattr(server: &mut Server, request: &TrustedXattr, file: BorrowedFd<'_>) -> ToWorker {
    ToWorker::TrustedXattr(try_xattr(server, request, file).map_err(Into::into))
}

fn try_xattr(server: &mut Server, request: &TrustedXattr, file: BorrowedFd<'_>) -> Result<XattrReply, Errno> {
    let (name, changes) = match request {
        TrustedXattr::Get { name } => (Some(name), false),
        TrustedXattr::Set { name, .. } | TrustedXattr::Remove { name } => (Some(name), true),
        TrustedXattr::List => (None, false),
    };
    if name.is_some_and(|name| !server.trusted_names.allows(name.as_cstr().to_bytes())) {
        return Err(Errno::EPERM);
    }
    if changes && server.readonly {
        return Err(Errno::EROFS);
    }
    server.mounts.check(file)?;
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::EBADF)?;
    match request {
        TrustedXattr::Get { name } => {
            let mut value = vec![0; XATTR_SIZE_MAX];
            let len =
                server.privileges.trusted_xattr(|| sys::get_xattr(&path, name.as_cstr(), &mut value))?;
            Bytes::new(value.get(..len).ok_or(Errno::EIO)?).map(XattrReply::Value).map_err(|_| Errno::E2BIG)
        }
        TrustedXattr::Set { name, value, mode } => {
            let (name, value, flags) = (name.as_cstr(), value.as_slice(), set_flags(*mode));
            server.privileges.trusted_xattr(|| sys::set_xattr(&path, name, value, flags))?;
            Ok(XattrReply::Done)
        }
        TrustedXattr::List => {
            let mut names = vec![0; XATTR_LIST_MAX];
            let len = server.privileges.trusted_xattr(|| sys::list_xattr(&path, &mut names))?;
            let shown = visible(names.get(..len).ok_or(Errno::EIO)?, &server.trusted_names);
            Bytes::new(&shown).map(XattrReply::Names).map_err(|_| Errno::E2BIG)
        }
        TrustedXattr::Remove { name } => {
            server.privileges.trusted_xattr(|| sys::remove_xattr(&path, name.as_cstr()))?;
            Ok(XattrReply::Done)
        }
    }
}

fn set_flags(mode: XattrSetMode) -> libc::c_int {
    match mode {
        XattrSetMode::Any => 0,
        XattrSetMode::Create => libc::XATTR_CREATE,
        XattrSetMode::Replace => libc::XATTR_REPLACE,
    }
}

/// The `trusted.*` names of a list, each with its NUL. (All other names the worker lists itself.)
fn visible(names: &[u8], allowed: &TrustedNames) -> Vec<u8> {
    let trusted = names
        .split_inclusive(|byte| *byte == 0)
        .filter(|name| name.starts_with(TRUSTED_PREFIX))
        .filter(|name| name.strip_suffix(b"\0").is_some_and(|name| allowed.allows(name)));
    trusted.flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_only_names_that_the_map_produces() {
        let names = b"user.a\0trusted.b\0trusted.v.c\0security.d\0trusted.v.\0";
        assert_eq!(visible(names, &TrustedNames::All), b"trusted.b\0trusted.v.c\0trusted.v.\0");
        let map = TrustedNames::Mapped(":map::trusted.v.:".parse().unwrap());
        assert!(!map.allows(b"trusted.b"));
        assert!(map.allows(b"trusted.v.c"));
        assert!(!visible(names, &map).windows(9).any(|w| w == b"trusted.b"));
        assert!(visible(b"", &map).is_empty());
    }
}
