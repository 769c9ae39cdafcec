//! Names that a request may carry: one path component, and one extended attribute.

use std::ffi::{CStr, CString};

use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

use super::bounded::Bytes;

/// Longest path component (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// Longest name of an extended attribute (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;

/// The prefix that the kernel keeps for `CAP_SYS_ADMIN`.
pub const TRUSTED_PREFIX: &[u8] = b"trusted.";

/// Why bytes are not such a name.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// Empty or too long.
    #[error("a name has 1 to 255 bytes")]
    Length,
    /// A NUL byte inside.
    #[error("a name has no NUL byte")]
    Nul,
    /// A `/` inside a path component.
    #[error("a path component has no \"/\"")]
    Slash,
    /// `.` or `..`.
    #[error("\".\" and \"..\" are no new names")]
    Dots,
    /// Not `trusted.` and something more.
    #[error("the attribute is not in the trusted namespace")]
    NotTrusted,
}

/// One path component to create: 1–255 bytes, no `/`, no NUL, not `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Bytes<1, NAME_MAX>")]
pub struct EntryName(CString);

impl EntryName {
    /// Checks and copies `name` (without its NUL).
    ///
    /// # Errors
    /// A [`NameError`] for everything that is not one path component.
    pub fn new(name: &[u8]) -> Result<Self, NameError> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(NameError::Length);
        }
        if name == b"." || name == b".." {
            return Err(NameError::Dots);
        }
        if name.contains(&b'/') {
            return Err(NameError::Slash);
        }
        CString::new(name).map(Self).map_err(|_| NameError::Nul)
    }

    /// Ready for a system call.
    pub fn as_cstr(&self) -> &CStr {
        &self.0
    }
}

impl TryFrom<Bytes<1, NAME_MAX>> for EntryName {
    type Error = NameError;

    fn try_from(bytes: Bytes<1, NAME_MAX>) -> Result<Self, NameError> {
        Self::new(bytes.as_slice())
    }
}

impl Serialize for EntryName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.to_bytes())
    }
}

/// The name of a `trusted.*` attribute: at most 255 bytes, no NUL, at least one byte behind the prefix.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Bytes<1, XATTR_NAME_MAX>")]
pub struct TrustedName(CString);

impl TrustedName {
    /// Checks and copies `name` (without its NUL).
    ///
    /// # Errors
    /// A [`NameError`] for everything that is not a `trusted.*` name.
    pub fn new(name: &[u8]) -> Result<Self, NameError> {
        if name.len() > XATTR_NAME_MAX {
            return Err(NameError::Length);
        }
        if name.strip_prefix(TRUSTED_PREFIX).is_none_or(<[u8]>::is_empty) {
            return Err(NameError::NotTrusted);
        }
        CString::new(name).map(Self).map_err(|_| NameError::Nul)
    }

    /// Ready for a system call.
    pub fn as_cstr(&self) -> &CStr {
        &self.0
    }
}

impl TryFrom<Bytes<1, XATTR_NAME_MAX>> for TrustedName {
    type Error = NameError;

    fn try_from(bytes: Bytes<1, XATTR_NAME_MAX>) -> Result<Self, NameError> {
        Self::new(bytes.as_slice())
    }
}

impl Serialize for TrustedName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_names() {
        for (name, want) in [
            (&b""[..], Some(NameError::Length)),
            (&[b'x'; 256], Some(NameError::Length)),
            (b".", Some(NameError::Dots)),
            (b"..", Some(NameError::Dots)),
            (b"a/b", Some(NameError::Slash)),
            (b"/", Some(NameError::Slash)),
            (b"a\0b", Some(NameError::Nul)),
            (b"...", None),
            (b"\xff\n", None),
            (&[b'x'; 255], None),
        ] {
            assert_eq!(EntryName::new(name).err(), want, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn trusted_names() {
        for (name, want) in [
            (&b"user.x"[..], Some(NameError::NotTrusted)),
            (b"trusted.", Some(NameError::NotTrusted)),
            (b"trusted", Some(NameError::NotTrusted)),
            (b"Trusted.x", Some(NameError::NotTrusted)),
            (b"security.capability", Some(NameError::NotTrusted)),
            (b"trusted.x\0", Some(NameError::Nul)),
            (b"trusted.overlay.opaque", None),
        ] {
            assert_eq!(TrustedName::new(name).err(), want, "{}", name.escape_ascii());
        }
        assert_eq!(
            TrustedName::new(&[b"trusted.".as_slice(), &[b'x'; 248]].concat()),
            Err(NameError::Length)
        );
    }
}
