//! Confinement of processes, one layer a module. Knows nothing of FUSE or vhost-user.
