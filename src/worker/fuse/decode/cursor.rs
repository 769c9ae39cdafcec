//! Takes the parts of a message from its front, each checked for being there.

use std::ffi::CStr;

use nix::errno::Errno;
use zerocopy::FromBytes;

use crate::worker::fuse::operation::FileName;

/// What is left of a message. Every method that fails says `EINVAL`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    /// A struct, copied out, so that its place in memory needs no alignment.
    pub(super) fn fixed<T: FromBytes>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::EINVAL)?;
        self.0 = rest;
        Ok(value)
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Errno::EINVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A NUL-terminated string of any content.
    pub(super) fn c_str(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::EINVAL)?;
        self.bytes(text.count_bytes() + 1)?;
        Ok(text)
    }

    /// A NUL-terminated string that is not empty: the name of an xattr, the target of a symbolic link.
    pub(super) fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = self.c_str()?;
        if text.is_empty() {
            return Err(Errno::EINVAL);
        }
        Ok(text)
    }

    /// A component of a path.
    pub(super) fn name(&mut self) -> Result<FileName<'a>, Errno> {
        file_name(self.text()?)
    }

    /// [`text`](Self::text) that ends the message: so there is no NUL in its midst.
    pub(super) fn last_text(&mut self) -> Result<&'a CStr, Errno> {
        let text = self.text()?;
        self.end()?;
        Ok(text)
    }

    /// [`name`](Self::name) that ends the message.
    pub(super) fn last_name(&mut self) -> Result<FileName<'a>, Errno> {
        file_name(self.last_text()?)
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

/// Refuses what is not one component.
pub(super) fn file_name(text: &CStr) -> Result<FileName<'_>, Errno> {
    FileName::new(text).ok_or(Errno::EINVAL)
}
