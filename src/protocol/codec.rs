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
