//! IOCTL (`--ioctl`): the four commands that read and set an inode's flags and its project, and no other.
//!
//! What the guest sends is data of a fixed size; no command here takes an address.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::sys::{self, Result};
use super::{FileSystem, Thread};
use crate::worker::fuse::operation::{Context, HandleId};

/// Bytes of `struct fsxattr`, the longest argument.
const FSXATTR: usize = 28;

/// An argument, and how much of it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    bytes: [u8; FSXATTR],
    length: usize,
}

impl Argument {
    /// The bytes that count.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// What a guest may send. The numbers are those of Linux's `fs.h` for 64 bits; those of a 32-bit program say
/// another size for flags, and mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    GetFlags,
    SetFlags,
    GetFsXattr,
    SetFsXattr,
}

impl Command {
    fn from_raw(command: u32) -> Option<Self> {
        match command {
            0x8008_6601 | 0x8004_6601 => Some(Self::GetFlags),
            0x4008_6602 | 0x4004_6602 => Some(Self::SetFlags),
            0x801c_581f => Some(Self::GetFsXattr),
            0x401c_5820 => Some(Self::SetFsXattr),
            _ => None,
        }
    }

    /// Bytes of the argument. (Flags are an int, whatever the number says.)
    fn size(self) -> usize {
        match self {
            Self::GetFlags | Self::SetFlags => 4,
            Self::GetFsXattr | Self::SetFsXattr => FSXATTR,
        }
    }

    fn run(self, fd: BorrowedFd<'_>, argument: &mut [u8; FSXATTR]) -> Result<()> {
        match self {
            Self::GetFlags => sys::inode_ioctl(fd, 0x8008_6601, argument),
            Self::SetFlags => sys::inode_ioctl(fd, 0x4008_6602, argument),
            Self::GetFsXattr => sys::inode_ioctl(fd, 0x801c_581f, argument),
            Self::SetFsXattr => sys::inode_ioctl(fd, 0x401c_5820, argument),
        }
    }
}

impl FileSystem {
    /// IOCTL: its output.
    ///
    /// # Errors
    /// ENOSYS without the option; ENOTTY for every other command; EINVAL for an argument that is too short; EROFS.
    pub fn ioctl(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        handle: HandleId,
        command: u32,
        input: &[u8],
        out_size: usize,
    ) -> Result<Argument> {
        if !self.config.ioctl {
            return Err(Errno::ENOSYS);
        }
        let handle = self.handles.get(handle, ctx.node)?;
        let command = Command::from_raw(command).ok_or(Errno::ENOTTY)?;
        let size = command.size();
        let mut argument = Argument { bytes: [0; FSXATTR], length: 0 };
        match command {
            Command::SetFlags | Command::SetFsXattr => {
                self.writable()?;
                let given = input.get(..size).ok_or(Errno::EINVAL)?;
                argument.bytes.get_mut(..size).ok_or(Errno::EINVAL)?.copy_from_slice(given);
            }
            Command::GetFlags | Command::GetFsXattr if out_size < size => return Err(Errno::EINVAL),
            // A 64-bit program that the command's number gave 8 bytes gets them.
            Command::GetFlags | Command::GetFsXattr => argument.length = out_size.min(size.max(8)),
        }
        thread.become_root();
        command.run(handle.fd(), &mut argument.bytes)?;
        Ok(argument)
    }
}
