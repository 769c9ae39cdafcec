//! virtiofsd, privilege-separated: a virtio-fs vhost-user device daemon.
//!
//! The path tells the privilege: [`broker`] is trusted and never sees a byte of guest memory, [`worker`] is
//! hostile once a guest runs, [`protocol`] is all that lies between them, and [`config`] is what the user
//! asked for. Neither of broker and worker imports the other; a test checks it. [`exporter`] shows the worker's
//! counters and has no privilege at all; [`stat`] is who asks it, for people. [`follower`] shows the guest what the host
//! mounts below the share later, and hears nobody.

pub mod broker;
pub mod config;
pub mod exporter;
pub mod follower;
pub mod protocol;
pub mod stat;
pub mod worker;
