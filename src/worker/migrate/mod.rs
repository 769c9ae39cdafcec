//! Live migration: what the worker knows of a guest, as a stream of bytes that another daemon goes on from.

pub mod format;
