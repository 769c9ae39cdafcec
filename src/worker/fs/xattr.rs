//! SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, and the security label of a new file.
//!
//! Names go through the map of `--xattrmap` both ways. Where the map renames `security.capability`, the host's
//! kernel no longer drops it when the file changes, so the file system does.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;

use super::sys::{self, Result};
use super::{FileSystem, Inode, Thread};
use crate::config::xattrmap::MapError;
use crate::worker::fuse::operation::Context;
use crate::worker::fuse::wire::InitFlags;

/// The longest list of names that the kernel gives (`XATTR_LIST_MAX`).
pub const MAX_LIST: usize = 65_536;

/// The prefix of the names that hold POSIX ACLs.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

impl FileSystem {
    /// ENOSYS without `--xattr`: the guest doesn't ask again.
    fn xattr_enabled(&self) -> Result<()> {
        if self.config.xattr { Ok(()) } else { Err(Errno::ENOSYS) }
    }

    /// The host's name for the guest's.
    fn host_name<'a>(&self, thread: &Thread, name: &'a CStr) -> Result<Cow<'a, CStr>> {
        if name.to_bytes().starts_with(ACL_PREFIX) && !thread.session().has(InitFlags::POSIX_ACL) {
            return Err(Errno::ENOTSUP);
        }
        let Some(map) = &self.xattr_map else { return Ok(Cow::Borrowed(name)) };
        match map.client_to_host(name.to_bytes()) {
            Ok(Cow::Borrowed(_)) => Ok(Cow::Borrowed(name)),
            Ok(Cow::Owned(host)) => CString::new(host).map(Cow::Owned).map_err(|_| Errno::EINVAL),
            Err(MapError::Eperm) => Err(Errno::EPERM),
            Err(MapError::Enotsup) => Err(Errno::ENOTSUP),
        }
    }

    /// SETXATTR
    pub fn setxattr(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        name: &CStr,
        value: &[u8],
        flags: u32,
        acl_kill_sgid: bool,
    ) -> Result<()> {
        self.xattr_enabled()?;
        self.writable()?;
        let inode = self.inode(ctx.node)?;
        let host = self.host_name(thread, name)?;
        thread.become_root();
        if let Some(trusted) = self.trusted_name(&host) {
            self.set_trusted(self.fd(&inode)?.as_fd(), trusted, value, flags as i32)?;
            inode.may_have_capability.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let set = || sys::setxattr_fd(self.fd(&inode)?.as_fd(), &host, value, flags as i32);
        if acl_kill_sgid && name.to_bytes() == b"system.posix_acl_access" {
            thread.without_fsetid(set)
        } else {
            set()
        }
    }

    /// GETXATTR: the value's size, and the value itself when `buf` is not empty.
    pub fn getxattr(&self, thread: &mut Thread, ctx: &Context, name: &CStr, buf: &mut [u8]) -> Result<usize> {
        self.xattr_enabled()?;
        let inode = self.inode(ctx.node)?;
        let host = self.host_name(thread, name)?;
        thread.become_root();
        match self.trusted_name(&host) {
            Some(trusted) => self.get_trusted(self.fd(&inode)?.as_fd(), trusted, buf),
            None => sys::getxattr_fd(self.fd(&inode)?.as_fd(), &host, buf),
        }
    }

    /// LISTXATTR: the names that the guest may see, each with its NUL.
    pub fn listxattr<'t>(&self, thread: &'t mut Thread, ctx: &Context) -> Result<&'t [u8]> {
        self.xattr_enabled()?;
        let inode = self.inode(ctx.node)?;
        thread.become_root();
        let posix_acl = thread.session().has(InitFlags::POSIX_ACL);
        let (buf, list) = thread.name_lists();
        buf.resize(MAX_LIST, 0);
        let n = sys::listxattr_fd(self.fd(&inode)?.as_fd(), buf)?;
        let mut show = |name: &[u8]| {
            let guest = match &self.xattr_map {
                Some(map) => map.host_to_client(name),
                None => Some(name),
            };
            if let Some(guest) = guest.filter(|guest| posix_acl || !guest.starts_with(ACL_PREFIX)) {
                list.extend_from_slice(guest);
                list.push(0);
            }
        };
        let names = buf.get(..n).unwrap_or_default().split(|byte| *byte == 0);
        names.filter(|name| !name.is_empty()).for_each(&mut show);
        self.list_trusted(self.fd(&inode)?.as_fd(), show)?;
        Ok(list)
    }

    /// REMOVEXATTR
    pub fn removexattr(&self, thread: &mut Thread, ctx: &Context, name: &CStr) -> Result<()> {
        self.xattr_enabled()?;
        self.writable()?;
        let inode = self.inode(ctx.node)?;
        let host = self.host_name(thread, name)?;
        thread.become_root();
        match self.trusted_name(&host) {
            Some(trusted) => self.remove_trusted(self.fd(&inode)?.as_fd(), trusted),
            None => sys::removexattr_fd(self.fd(&inode)?.as_fd(), &host),
        }
    }

    /// Sets the security label that came with a creating request.
    pub(super) fn set_security_context(&self, fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<()> {
        self.xattr_enabled()?;
        let host = match &self.xattr_map {
            None => Cow::Borrowed(name),
            Some(map) => {
                let host = map.client_to_host(name.to_bytes()).map_err(|_| Errno::EPERM)?;
                Cow::Owned(CString::new(host.into_owned()).map_err(|_| Errno::EINVAL)?)
            }
        };
        match self.trusted_name(&host) {
            Some(trusted) => self.set_trusted(fd, trusted, value, 0),
            None => sys::setxattr_fd(fd, &host, value, 0),
        }
    }

    /// Removes the capabilities of a file that is about to change, where the map hides them from the kernel. Only
    /// regular files are programs; what is neither they nor a directory can't even be asked about a `user.*` name.
    pub(super) fn drop_renamed_capability(&self, inode: &Arc<Inode>) -> Result<()> {
        let Some(name) = &self.renamed_capability else { return Ok(()) };
        if inode.kind != libc::S_IFREG {
            return Ok(());
        }
        let removed = match self.trusted_name(name) {
            // The broker is asked once, and again after the guest has set the attribute.
            Some(trusted) if inode.may_have_capability.swap(false, Ordering::Relaxed) => {
                let removed = self.fd(inode).and_then(|fd| self.remove_trusted(fd.as_fd(), trusted));
                if removed.is_err_and(|e| !matches!(e, Errno::ENODATA | Errno::ENOTSUP)) {
                    inode.may_have_capability.store(true, Ordering::Relaxed);
                }
                removed
            }
            Some(_) => Ok(()),
            None => sys::removexattr_fd(self.fd(inode)?.as_fd(), name),
        };
        match removed {
            Ok(()) | Err(Errno::ENODATA | Errno::ENOTSUP) => Ok(()),
            Err(e) => Err(e),
        }
    }
}
