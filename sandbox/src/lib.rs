//! Confinement of processes, one layer a module. Knows nothing of FUSE or vhost-user.

pub mod capabilities;
pub mod credentials;
pub mod fds;
pub mod graft;
pub mod id_maps;
pub mod landlock;
pub mod mountinfo;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod process;
pub mod rlimits;
pub mod seccomp;
mod sys;
