//! Seals on file handles: proof that this broker made a handle from an fd that the worker held.
//!
//! The authentication code is SipHash-2-4 with 128 bits of output under a key that never leaves this process and
//! lives as long as the device. A keyed hash made for short inputs is enough here, where a cryptographic one of
//! general use would bring a larger dependency: the only oracle is the broker itself, and it ends the worker at
//! the first wrong code, so a forger has one guess in 2^128 for each device.
//!
//! Codes are compared in constant time all the same: that a wrong one ends the worker is another module's rule.

use nix::errno::Errno;
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;
use subtle::ConstantTimeEq;

use super::sys;
use crate::protocol::handle::MAC_BYTES;
use crate::protocol::{FileHandle, SealedHandle};

/// Makes and checks seals. Its key is neither shown nor copied.
pub struct Sealer {
    key: [u8; 16],
}

impl Sealer {
    /// A sealer with a fresh key.
    ///
    /// # Errors
    /// When the kernel gives no random numbers.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { key: sys::random_key()? })
    }

    /// Seals `handle`, which the caller made from a file on the share's mount number `mount`.
    pub fn seal(&self, mount: u32, handle: FileHandle) -> SealedHandle {
        let mac = self.mac(mount, &handle);
        SealedHandle { mount, handle, mac }
    }

    /// Whether this sealer sealed exactly this.
    pub fn is_genuine(&self, sealed: &SealedHandle) -> bool {
        self.mac(sealed.mount, &sealed.handle).ct_eq(&sealed.mac).into()
    }

    /// Fields of fixed size come first, so no two inputs have the same bytes.
    fn mac(&self, mount: u32, handle: &FileHandle) -> [u8; MAC_BYTES] {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&mount.to_le_bytes());
        hasher.write(&handle.handle_type.to_le_bytes());
        hasher.write(handle.bytes.as_slice());
        hasher.finish128().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::bounded::Bytes;

    fn handle(bytes: &[u8]) -> FileHandle {
        FileHandle { handle_type: 1, bytes: Bytes::new(bytes).unwrap() }
    }

    #[test]
    fn only_the_exact_seal_of_this_sealer_is_genuine() {
        let sealer = Sealer::new().unwrap();
        let sealed = sealer.seal(3, handle(b"12345678"));
        assert!(sealer.is_genuine(&sealed));
        assert!(!Sealer::new().unwrap().is_genuine(&sealed), "another device's key");
        assert!(!sealer.is_genuine(&SealedHandle { mount: 4, ..sealed.clone() }));
        for bit in 0..128 {
            let mut forged = sealed.clone();
            forged.mac[bit / 8] ^= 1 << (bit % 8);
            assert!(!sealer.is_genuine(&forged), "bit {bit} of the code");
        }
        for bit in 0..64 {
            let mut bytes = *b"12345678";
            bytes[bit / 8] ^= 1 << (bit % 8);
            let forged = SealedHandle { handle: handle(&bytes), ..sealed.clone() };
            assert!(!sealer.is_genuine(&forged), "bit {bit} of the handle");
        }
        for shorter in 0..8 {
            let forged = SealedHandle { handle: handle(&b"12345678"[..shorter]), ..sealed.clone() };
            assert!(!sealer.is_genuine(&forged), "cut to {shorter} bytes");
        }
        let typed = FileHandle { handle_type: 2, ..handle(b"12345678") };
        assert!(!sealer.is_genuine(&SealedHandle { handle: typed, ..sealed }));
    }

    /// Bytes can't move from one field to the next.
    #[test]
    fn fields_do_not_run_into_each_other() {
        let sealer = Sealer { key: [7; 16] };
        let a = sealer.mac(0, &FileHandle { handle_type: 0, bytes: Bytes::new(b"").unwrap() });
        let b = sealer.mac(0, &FileHandle { handle_type: 0, bytes: Bytes::new(b"\0").unwrap() });
        assert_ne!(a, b);
    }
}
