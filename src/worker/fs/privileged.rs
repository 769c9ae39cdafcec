//! What only the broker can do, and does where an option asks for it: device nodes (`--modcaps=+mknod`) and
//! `trusted.*` attributes (`--modcaps=+sys_admin`). Without the option, the kernel's answer to the unprivileged
//! worker is the guest's answer.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::sys::Result;
use super::{FileSystem, Inode, Thread};
use crate::protocol::bounded::Bytes;
use crate::protocol::message::{DeviceKind, MakeDevice, Permissions, TrustedXattr, XattrReply, XattrSetMode};
use crate::protocol::name::{EntryName, TRUSTED_PREFIX, TrustedName};
use crate::worker::broker_client::{BrokerClient, BrokerClientError};
use crate::worker::fuse::operation::{Context, FileName};
use crate::worker::fuse::reply::decode_dev;
use crate::worker::fuse::wire::InitFlags;

/// The errno for the guest.
fn errno(error: BrokerClientError) -> Errno {
    Errno::from_raw(error.errno().code())
}

impl FileSystem {
    fn broker(&self) -> Result<&BrokerClient> {
        self.resources.broker.as_deref().ok_or(Errno::EPERM)
    }

    /// A block or character device. The broker makes it as the guest's root, for nobody else.
    ///
    /// # Errors
    /// EPERM without `--modcaps=+mknod`, and for a request that is not root's.
    pub(super) fn make_device(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        parent: &Arc<Inode>,
        name: FileName<'_>,
        (mode, rdev, umask): (u32, u32, u32),
    ) -> Result<()> {
        if !self.resources.services.make_device {
            return Err(Errno::EPERM);
        }
        let (uid, gid) = self.owner(ctx)?;
        let kind = match mode & libc::S_IFMT {
            libc::S_IFBLK => DeviceKind::Block,
            libc::S_IFCHR => DeviceKind::Character,
            _ => return Err(Errno::EINVAL),
        };
        let umask = if thread.session().has(InitFlags::POSIX_ACL) { umask } else { 0 };
        let (major, minor) = decode_dev(rdev);
        let device = MakeDevice {
            name: EntryName::new(name.as_cstr().to_bytes()).map_err(|_| Errno::ENAMETOOLONG)?,
            kind,
            permissions: Permissions::of_mode(mode),
            umask: Permissions::of_mode(umask & 0o777),
            major,
            minor,
            uid,
            gid,
        };
        let directory = self.fd(parent)?;
        thread.become_root();
        self.broker()?.make_device(directory.as_fd(), device).map_err(errno)
    }

    /// The name, if it is one that the broker is to act on.
    pub(super) fn trusted_name(&self, host: &CStr) -> Option<TrustedName> {
        if !self.resources.services.trusted_xattr || !host.to_bytes().starts_with(TRUSTED_PREFIX) {
            return None;
        }
        // What is no such name goes to the kernel, which knows the errno for it.
        TrustedName::new(host.to_bytes()).ok()
    }

    /// `setxattr`
    pub(super) fn set_trusted(
        &self,
        fd: BorrowedFd<'_>,
        name: TrustedName,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        let value = Bytes::new(value).map_err(|_| Errno::E2BIG)?;
        let mode = match flags {
            0 => XattrSetMode::Any,
            libc::XATTR_CREATE => XattrSetMode::Create,
            libc::XATTR_REPLACE => XattrSetMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        self.trusted(fd, TrustedXattr::Set { name, value, mode }).map(drop)
    }

    /// `getxattr`; with an empty buffer, the value's size.
    pub(super) fn get_trusted(&self, fd: BorrowedFd<'_>, name: TrustedName, buf: &mut [u8]) -> Result<usize> {
        let XattrReply::Value(value) = self.trusted(fd, TrustedXattr::Get { name })? else {
            return Err(Errno::EIO);
        };
        let value = value.as_slice();
        if !buf.is_empty() {
            buf.get_mut(..value.len()).ok_or(Errno::ERANGE)?.copy_from_slice(value);
        }
        Ok(value.len())
    }

    /// `listxattr`: only the `trusted.*` names, which the kernel hides from the worker.
    pub(super) fn list_trusted(&self, fd: BorrowedFd<'_>, mut each: impl FnMut(&[u8])) -> Result<()> {
        if !self.resources.services.trusted_xattr {
            return Ok(());
        }
        let XattrReply::Names(names) = self.trusted(fd, TrustedXattr::List)? else { return Err(Errno::EIO) };
        names.as_slice().split(|byte| *byte == 0).filter(|name| !name.is_empty()).for_each(&mut each);
        Ok(())
    }

    /// `removexattr`
    pub(super) fn remove_trusted(&self, fd: BorrowedFd<'_>, name: TrustedName) -> Result<()> {
        self.trusted(fd, TrustedXattr::Remove { name }).map(drop)
    }

    fn trusted(&self, fd: BorrowedFd<'_>, request: TrustedXattr) -> Result<XattrReply> {
        self.broker()?.trusted_xattr(fd, request).map_err(errno)
    }
}
