//! Bytes ↔ messages: bincode 2 with one fixed configuration.
//!
//! Every value has exactly one encoding (integers of fixed width, no padding, nothing after the end), and no
//! claimed length makes the decoder allocate: fields check theirs in [`super::bounded`] before they copy.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Largest message in bytes. Room for the largest field (64 KiB of xattr value, or 253 sealed handles) and for a
/// long `--xattrmap` in the worker's configuration; a datagram of this size fits the kernel's default socket
/// buffer.
pub const MAX_MESSAGE: usize = 128 * 1024;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_MESSAGE>> =
    bincode::config::legacy().with_limit::<MAX_MESSAGE>();

/// The message can't be sent: it has more than [`MAX_MESSAGE`] bytes.
#[derive(Debug, Error)]
#[error("the message does not fit into {MAX_MESSAGE} bytes: {0}")]
pub struct EncodeError(#[from] bincode::error::EncodeError);

/// The bytes are not a message.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// An unknown variant, a length beyond its field's limit, an invalid value, or an early end.
    #[error("not a message of the protocol: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    /// A message, and then something more.
    #[error("{0} bytes behind the end of the message")]
    TrailingBytes(usize),
}

/// Encodes `message` into the front of `buffer` and says how many bytes it took.
///
/// # Errors
/// When it does not fit.
pub fn encode<M: Serialize>(message: &M, buffer: &mut [u8; MAX_MESSAGE]) -> Result<usize, EncodeError> {
    Ok(bincode::serde::encode_into_slice(message, buffer, CONFIG)?)
}

/// Decodes the one message that `bytes` is.
///
/// # Errors
/// For everything that [`encode`] would not have written.
pub fn decode<'de, M: Deserialize<'de>>(bytes: &'de [u8]) -> Result<M, DecodeError> {
    let (message, used) = bincode::serde::borrow_decode_from_slice(bytes, CONFIG)?;
    match bytes.len().saturating_sub(used) {
        0 => Ok(message),
        trailing => Err(DecodeError::TrailingBytes(trailing)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::arbitrary::{mutated, requests};
    use crate::protocol::message::XattrReply;
    use crate::protocol::{ToBroker, ToWorker};

    fn encoded<M: Serialize>(message: &M) -> Vec<u8> {
        let mut buffer = Box::new([0; MAX_MESSAGE]);
        let len = encode(message, &mut buffer).unwrap();
        buffer[..len].to_vec()
    }

    /// Whatever decodes is exactly what encoding would have given: nothing is ignored, nothing has two forms.
    fn assert_canonical<M: Serialize + for<'de> Deserialize<'de>>(bytes: &[u8]) {
        if let Ok(message) = decode::<M>(bytes) {
            assert_eq!(encoded(&message), bytes);
        }
    }

    proptest! {
        #[test]
        fn requests_come_back(request in requests()) {
            let bytes = encoded(&request);
            prop_assert_eq!(decode::<ToBroker>(&bytes).unwrap(), request);
            for cut in 0..bytes.len() {
                prop_assert!(decode::<ToBroker>(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn mutated_messages_are_refused_or_canonical(bytes in requests().prop_map(|r| encoded(&r)).prop_flat_map(mutated)) {
            assert_canonical::<ToBroker>(&bytes);
            assert_canonical::<ToWorker>(&bytes);
        }

        #[test]
        fn any_bytes_are_refused_or_canonical(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            assert_canonical::<ToBroker>(&bytes);
            assert_canonical::<ToWorker>(&bytes);
        }
    }

    /// Lengths that only claim to be large are refused by their field, not by the end of the bytes.
    #[test]
    fn claimed_lengths_are_checked_first() {
        // Confined: variant 0, then the number of reports.
        let mut bytes = 0u32.to_le_bytes().to_vec();
        bytes.extend(u64::MAX.to_le_bytes());
        let error = decode::<ToBroker>(&bytes).unwrap_err().to_string();
        assert!(error.contains("not within 0..=32"), "{error}");
        // Reopen: variant 3, then the number of handles.
        let mut bytes = 3u32.to_le_bytes().to_vec();
        bytes.extend(254u64.to_le_bytes());
        let error = decode::<ToBroker>(&bytes).unwrap_err().to_string();
        assert!(error.contains("not within 0..=253"), "{error}");
        // One handle: mount, type, then the handle's length: 129 bytes that are there.
        let mut bytes = 3u32.to_le_bytes().to_vec();
        bytes.extend(1u64.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(129u64.to_le_bytes());
        bytes.extend([0; 129 + 16]);
        let error = decode::<ToBroker>(&bytes).unwrap_err().to_string();
        assert!(error.contains("not within 0..=128"), "{error}");
    }

    #[test]
    fn the_largest_messages_fit() {
        use crate::protocol::bounded::{Bytes, List};
        use crate::protocol::handle::MAX_HANDLE_BYTES;
        use crate::protocol::{FileHandle, MAX_FDS, SealedHandle};
        let handle = FileHandle { handle_type: -1, bytes: Bytes::new(&[7; MAX_HANDLE_BYTES]).unwrap() };
        let sealed = SealedHandle { mount: u32::MAX, handle, mac: [9; 16] };
        let request = ToBroker::Reopen(List::new(vec![sealed.clone(); MAX_FDS]).unwrap());
        assert_eq!(decode::<ToBroker>(&encoded(&request)).unwrap(), request);
        let reply = ToWorker::Sealed(List::new(vec![Ok(sealed); MAX_FDS]).unwrap());
        assert_eq!(decode::<ToWorker>(&encoded(&reply)).unwrap(), reply);
        let reply = ToWorker::TrustedXattr(Ok(XattrReply::Value(Bytes::new(&[1; 65536]).unwrap())));
        assert_eq!(decode::<ToWorker>(&encoded(&reply)).unwrap(), reply);
    }
}
