//! The FUSE protocol as this daemon speaks it: wire structs, a total decoder, an encoder. Makes no system
//! call and touches no guest memory.

pub mod operation;
pub mod wire;
