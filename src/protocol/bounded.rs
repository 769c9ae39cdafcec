//! Containers that carry their limit in the type: a longer one is refused before memory is allocated for it.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A value is longer or shorter than its type allows.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("length {len} is not within {min}..={max}")]
pub struct LengthError {
    len: usize,
    min: usize,
    max: usize,
}

fn check_length(len: usize, min: usize, max: usize) -> Result<(), LengthError> {
    if len < min || len > max { Err(LengthError { len, min, max }) } else { Ok(()) }
}

/// `MIN..=MAX` bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes<const MIN: usize, const MAX: usize>(Box<[u8]>);

impl<const MIN: usize, const MAX: usize> Bytes<MIN, MAX> {
    /// Copies `bytes`.
    ///
    /// # Errors
    /// When there are fewer than `MIN` or more than `MAX`.
    pub fn new(bytes: &[u8]) -> Result<Self, LengthError> {
        check_length(bytes.len(), MIN, MAX)?;
        Ok(Self(bytes.into()))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> Bytes<0, MAX> {
    /// Copies the first `MAX` of `bytes`.
    pub fn shortened(bytes: &[u8]) -> Self {
        Self(bytes.iter().copied().take(MAX).collect())
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Debug for Bytes<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl<const MIN: usize, const MAX: usize> Serialize for Bytes<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Bytes<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor<const MIN: usize, const MAX: usize>;
        impl<const MIN: usize, const MAX: usize> Visitor<'_> for BytesVisitor<MIN, MAX> {
            type Value = Bytes<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{MIN} to {MAX} bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Bytes::new(bytes).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(BytesVisitor)
    }
}

/// At most `MAX` values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> List<T, MAX> {
    /// Takes `values`.
    ///
    /// # Errors
    /// When there are more than `MAX`.
    pub fn new(values: Vec<T>) -> Result<Self, LengthError> {
        check_length(values.len(), 0, MAX)?;
        Ok(Self(values))
    }

    /// The values.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }

    /// The values.
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }
}

impl<T: Serialize, const MAX: usize> Serialize for List<T, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
            type Value = List<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} values")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let claimed = seq.size_hint().unwrap_or(0);
                check_length(claimed, 0, MAX).map_err(A::Error::custom)?;
                let mut values = Vec::with_capacity(claimed);
                while let Some(value) = seq.next_element()? {
                    if values.len() == MAX {
                        return Err(A::Error::custom(LengthError { len: MAX + 1, min: 0, max: MAX }));
                    }
                    values.push(value);
                }
                Ok(List(values))
            }
        }
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}
