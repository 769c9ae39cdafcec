//! INIT: what both sides may use from then on. A pure function of the guest's offer and the configuration.
//!
//! Flags are of three kinds: those that cost nothing and are always taken when offered ([`ALWAYS`]), those that
//! an option asks for, and those of what the file system serves beyond upstream virtiofsd
//! ([`Service::extra`]). No flag is answered that the guest did not offer.

use nix::errno::Errno;
use thiserror::Error;

use super::operation::Init;
use super::wire::{self, InitFlags, InitOut};
use crate::config::{CachePolicy, FsConfig, Negotiate};
use crate::worker::migrate::format::NegotiatedOptions;

/// Taken whenever offered: a passthrough file system serves them at no cost and with no option.
pub const ALWAYS: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::AUTO_INVAL_DATA)
    .union(InitFlags::ASYNC_DIO)
    .union(InitFlags::HAS_IOCTL_DIR)
    .union(InitFlags::ATOMIC_O_TRUNC)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::SUBMOUNTS)
    .union(InitFlags::INIT_EXT)
    .union(InitFlags::CREATE_SUPP_GROUP)
    .union(InitFlags::ALLOW_IDMAP);

/// POSIX ACLs need all three: the umask must not be applied in the guest where a default ACL overrides it, and
/// SETXATTR must be able to clear the set-group-id bit.
pub const ACL: InitFlags = InitFlags::POSIX_ACL.union(InitFlags::DONT_MASK).union(InitFlags::SETXATTR_EXT);

/// Background requests that the guest may have under way: the most that the field can say.
const MAX_BACKGROUND: u16 = u16::MAX;

/// What any guest gets as the largest WRITE: upstream's value, which is also the most that Linux before 6.13 uses
/// (256 pages).
const USUAL_MAX_WRITE: u32 = 1 << 20;

/// The minor version of Linux 6.13, whose `fs.fuse.max_pages_limit` lets a guest use more pages in a request. The
/// guest doesn't tell its limit: it takes the smaller of that and ours.
const MAX_PAGES_LIMIT_MINOR: u32 = 41;

/// What the file system serves, apart from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Flags beyond [`ALWAYS`] and those of options: only of what is really served.
    pub extra: InitFlags,
    /// Largest WRITE, and with it largest READ, in bytes, of a guest that can have more than 1 MiB.
    pub max_write: u32,
    /// Bytes a page, as the guest's `max_pages` counts them.
    pub page_size: u32,
}

impl Default for Service {
    /// Nothing extra, at most 4 MiB, pages of 4 KiB.
    fn default() -> Self {
        Service { extra: InitFlags::empty(), max_write: 4 << 20, page_size: 4096 }
    }
}

/// What a session has agreed on. The default is a device before INIT: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// The smaller of both sides' minor versions; 0 before INIT.
    pub minor: u32,
    /// Flags that both sides have.
    pub flags: InitFlags,
    /// Largest WRITE in bytes.
    pub max_write: u32,
    /// Mark submounts in attributes.
    pub announce_submounts: bool,
}

impl Negotiated {
    /// Whether all of `flags` were agreed on.
    pub fn has(&self, flags: InitFlags) -> bool {
        self.flags.contains(flags)
    }

    /// The state of a session that was negotiated elsewhere and migrated here. The stream only tells four
    /// options; [`ACL`] hangs together, and the others follow from this side's configuration, which must be
    /// the same as the source's.
    pub fn migrated(options: &NegotiatedOptions, fs: &FsConfig, service: &Service) -> Negotiated {
        let (required, optional) = by_option(fs);
        let told = ACL | InitFlags::WRITEBACK_CACHE | InitFlags::CREATE_SUPP_GROUP;
        let mut flags = (ALWAYS | required | optional | service.extra) - told;
        flags.set(ACL, options.posix_acl);
        flags.set(InitFlags::WRITEBACK_CACHE, options.writeback);
        flags.set(InitFlags::CREATE_SUPP_GROUP, options.sup_group_extension);
        Negotiated {
            minor: wire::MINOR,
            flags,
            max_write: service.max_write,
            announce_submounts: options.announce_submounts,
        }
    }
}

impl From<&Negotiated> for NegotiatedOptions {
    /// What the next daemon needs to be told.
    fn from(negotiated: &Negotiated) -> NegotiatedOptions {
        NegotiatedOptions {
            writeback: negotiated.has(InitFlags::WRITEBACK_CACHE),
            announce_submounts: negotiated.announce_submounts,
            posix_acl: negotiated.has(InitFlags::POSIX_ACL),
            sup_group_extension: negotiated.has(InitFlags::CREATE_SUPP_GROUP),
        }
    }
}

/// The answer to an INIT that is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// The session starts.
    Session {
        /// The reply.
        reply: InitOut,
        /// The state to keep.
        negotiated: Negotiated,
        /// What options ask for and the guest doesn't offer, for one warning in the log.
        missing: InitFlags,
    },
    /// The guest speaks a later major version: the reply names ours, and the guest sends another INIT.
    OlderMajor(InitOut),
}

/// Why there is no session. The guest's mount fails with [`errno`](Refusal::errno).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The guest's protocol is too old.
    #[error(
        "the guest speaks FUSE {major}.{minor}, but at least 7.27 is needed: use Linux 4.18 or later in the guest"
    )]
    TooOld {
        /// Its major version.
        major: u32,
        /// Its minor version.
        minor: u32,
    },
    /// `--posix-acl` without the guest's support.
    #[error(
        "--posix-acl needs FUSE_POSIX_ACL, FUSE_DONT_MASK and FUSE_SETXATTR_EXT, but the guest's kernel doesn't \
         offer all of them: use Linux 5.13 or later in the guest, or --posix-acl=auto"
    )]
    PosixAcl,
    /// `--security-label` without the guest's support.
    #[error(
        "--security-label needs FUSE_SECURITY_CTX, but the guest's kernel doesn't offer it: use Linux 5.17 or \
         later in the guest, or --security-label=auto"
    )]
    SecurityLabel,
}

impl Refusal {
    /// The errno of the reply.
    pub fn errno(&self) -> Errno {
        Errno::EPROTO
    }
}

/// Answers an INIT.
///
/// # Errors
///
/// [`Refusal`] when the guest lacks what can't be done without.
pub fn negotiate(init: &Init, fs: &FsConfig, service: &Service) -> Result<Agreement, Refusal> {
    let mut reply = InitOut { major: wire::MAJOR, minor: wire::MINOR, ..InitOut::default() };
    if init.major > wire::MAJOR {
        return Ok(Agreement::OlderMajor(reply));
    }
    if init.major < wire::MAJOR || init.minor < wire::MIN_MINOR {
        return Err(Refusal::TooOld { major: init.major, minor: init.minor });
    }
    let (required, optional) = by_option(fs);
    if required.contains(ACL) && !init.flags.contains(ACL) {
        return Err(Refusal::PosixAcl);
    }
    if !init.flags.contains(required) {
        return Err(Refusal::SecurityLabel);
    }
    let wanted = required | optional;
    let usable = if init.flags.contains(ACL) { wanted } else { wanted - ACL };
    let flags = (ALWAYS | usable | service.extra) & init.flags;
    let large = flags.contains(InitFlags::MAX_PAGES) && init.minor >= MAX_PAGES_LIMIT_MINOR;
    let max_write = if large { service.max_write } else { service.max_write.min(USUAL_MAX_WRITE) };
    let negotiated = Negotiated {
        minor: init.minor.min(wire::MINOR),
        flags,
        max_write,
        announce_submounts: fs.announce_submounts && flags.contains(InitFlags::SUBMOUNTS),
    };
    reply.max_readahead = init.max_readahead;
    (reply.flags, reply.flags2) = halves(flags);
    reply.max_background = MAX_BACKGROUND;
    reply.congestion_threshold = MAX_BACKGROUND / 4 * 3;
    reply.max_write = max_write;
    reply.time_gran = 1;
    reply.max_pages = u16::try_from(max_write.div_ceil(service.page_size.max(1))).unwrap_or(u16::MAX);
    Ok(Agreement::Session { reply, negotiated, missing: wanted - flags })
}

/// What options ask for: flags without which there is no session, and flags that are only used when offered.
fn by_option(fs: &FsConfig) -> (InitFlags, InitFlags) {
    let mut required = InitFlags::empty();
    let mut optional = InitFlags::empty();
    // Without caching, a directory's entries would be looked up for nothing.
    let readdirplus = fs.readdirplus && fs.cache != CachePolicy::Never;
    optional.set(InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO, readdirplus);
    optional.set(InitFlags::WRITEBACK_CACHE, fs.writeback);
    optional.set(InitFlags::HANDLE_KILLPRIV_V2, fs.killpriv_v2);
    optional.set(InitFlags::DIRECT_IO_ALLOW_MMAP, fs.allow_mmap);
    optional.set(InitFlags::POSIX_LOCKS, fs.locks.posix);
    optional.set(InitFlags::FLOCK_LOCKS, fs.locks.flock);
    for (mode, flags) in [(fs.posix_acl, ACL), (fs.security_label, InitFlags::SECURITY_CTX)] {
        required.set(flags, mode == Negotiate::Always);
        optional.set(flags, mode == Negotiate::Auto);
    }
    (required, optional)
}

/// The two words of the reply.
fn halves(flags: InitFlags) -> (u32, u32) {
    let [low, high] = [flags.bits() & u64::from(u32::MAX), flags.bits() >> 32];
    (u32::try_from(low).unwrap_or(0), u32::try_from(high).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{InodeFileHandles, Locks, PrivilegedRequests};

    fn fs() -> FsConfig {
        FsConfig {
            cache: CachePolicy::Auto,
            allow_mmap: false,
            readdirplus: true,
            writeback: false,
            allow_direct_io: false,
            xattr: false,
            posix_acl: Negotiate::Never,
            security_label: Negotiate::Never,
            xattrmap: None,
            readonly: false,
            announce_submounts: true,
            inode_file_handles: InodeFileHandles::Prefer,
            max_inodes: None,
            max_handles: None,
            killpriv_v2: false,
            preserve_noatime: false,
            locks: Locks::default(),
            ioctl: false,
            translate_uid: Vec::new(),
            translate_gid: Vec::new(),
            privileged: PrivilegedRequests::default(),
        }
    }

    fn offer(flags: InitFlags) -> Init {
        Init { major: 7, minor: 41, max_readahead: 131_072, flags }
    }

    fn session(init: &Init, fs: &FsConfig) -> (InitOut, Negotiated, InitFlags) {
        match negotiate(init, fs, &Service::default()) {
            Ok(Agreement::Session { reply, negotiated, missing }) => (reply, negotiated, missing),
            other => panic!("no session: {other:?}"),
        }
    }

    #[test]
    fn default_options_take_what_upstream_takes() {
        let (reply, negotiated, missing) = session(&offer(InitFlags::all()), &fs());
        let wanted = ALWAYS | InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO;
        assert_eq!(negotiated.flags, wanted);
        assert_eq!(u64::from(reply.flags) | u64::from(reply.flags2) << 32, wanted.bits());
        assert_eq!((reply.major, reply.minor, negotiated.minor), (7, wire::MINOR, 41));
        assert_eq!((reply.max_write, reply.max_pages, reply.time_gran), (4 << 20, 1024, 1));
        assert_eq!((reply.max_background, reply.congestion_threshold), (65535, 49149));
        assert_eq!(reply.max_readahead, 131_072);
        assert!(negotiated.announce_submounts);
        assert_eq!(missing, InitFlags::empty());
    }

    #[test]
    fn nothing_is_answered_that_was_not_offered() {
        let mut all = fs();
        all.writeback = true;
        all.killpriv_v2 = true;
        all.allow_mmap = true;
        all.posix_acl = Negotiate::Auto;
        all.security_label = Negotiate::Auto;
        let (reply, negotiated, missing) = session(&offer(InitFlags::ASYNC_READ), &all);
        assert_eq!(negotiated.flags, InitFlags::ASYNC_READ);
        assert_eq!((reply.flags, reply.flags2), (1, 0));
        assert!(!negotiated.announce_submounts);
        let options = InitFlags::WRITEBACK_CACHE
            | InitFlags::HANDLE_KILLPRIV_V2
            | InitFlags::DIRECT_IO_ALLOW_MMAP
            | InitFlags::DO_READDIRPLUS
            | InitFlags::READDIRPLUS_AUTO
            | InitFlags::SECURITY_CTX
            | ACL;
        assert_eq!(missing, options);
    }

    #[test]
    fn each_option_adds_its_flags_only() {
        type Change = fn(&mut FsConfig);
        let cases: [(Change, InitFlags); 7] = [
            (|fs| fs.locks.posix = true, InitFlags::POSIX_LOCKS),
            (|fs| fs.locks.flock = true, InitFlags::FLOCK_LOCKS),
            (|fs| fs.writeback = true, InitFlags::WRITEBACK_CACHE),
            (|fs| fs.killpriv_v2 = true, InitFlags::HANDLE_KILLPRIV_V2),
            (|fs| fs.allow_mmap = true, InitFlags::DIRECT_IO_ALLOW_MMAP),
            (|fs| fs.posix_acl = Negotiate::Always, ACL),
            (|fs| fs.security_label = Negotiate::Auto, InitFlags::SECURITY_CTX),
        ];
        let (_, plain, _) = session(&offer(InitFlags::all()), &fs());
        for (change, flags) in cases {
            let mut changed = fs();
            change(&mut changed);
            let (_, negotiated, _) = session(&offer(InitFlags::all()), &changed);
            assert_eq!(negotiated.flags - plain.flags, flags);
        }
        let without: [Change; 2] = [|fs| fs.readdirplus = false, |fs| fs.cache = CachePolicy::Never];
        for change in without {
            let mut changed = fs();
            change(&mut changed);
            let (_, negotiated, _) = session(&offer(InitFlags::all()), &changed);
            assert_eq!(negotiated.flags, ALWAYS);
        }
    }

    #[test]
    fn acl_is_all_or_nothing() {
        let mut acl = fs();
        acl.posix_acl = Negotiate::Auto;
        let (_, negotiated, missing) = session(&offer(InitFlags::all() - InitFlags::DONT_MASK), &acl);
        assert!(!negotiated.flags.intersects(ACL));
        assert_eq!(missing, ACL);
        acl.posix_acl = Negotiate::Always;
        let refused =
            negotiate(&offer(InitFlags::all() - InitFlags::SETXATTR_EXT), &acl, &Service::default());
        assert_eq!(refused, Err(Refusal::PosixAcl));
    }

    #[test]
    fn required_label_and_old_versions_are_refused() {
        let mut label = fs();
        label.security_label = Negotiate::Always;
        let without = offer(InitFlags::all() - InitFlags::SECURITY_CTX);
        assert_eq!(negotiate(&without, &label, &Service::default()), Err(Refusal::SecurityLabel));
        for (major, minor) in [(6, 99), (7, 26)] {
            let old = Init { major, minor, ..offer(InitFlags::all()) };
            let refusal = Refusal::TooOld { major, minor };
            assert_eq!(negotiate(&old, &fs(), &Service::default()), Err(refusal));
            assert_eq!(refusal.errno(), Errno::EPROTO);
        }
    }

    #[test]
    fn later_major_is_answered_with_ours() {
        let later = Init { major: 8, ..offer(InitFlags::all()) };
        match negotiate(&later, &fs(), &Service::default()) {
            Ok(Agreement::OlderMajor(reply)) => {
                assert_eq!((reply.major, reply.minor, reply.flags), (7, wire::MINOR, 0));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn extra_services_and_sizes() {
        let service = Service { extra: InitFlags::POSIX_LOCKS, max_write: 4 << 20, page_size: 4096 };
        match negotiate(&offer(InitFlags::all()), &fs(), &service) {
            Ok(Agreement::Session { reply, negotiated, .. }) => {
                assert!(negotiated.has(InitFlags::POSIX_LOCKS));
                assert_eq!(
                    (reply.max_pages, reply.max_write, negotiated.max_write),
                    (1024, 4 << 20, 4 << 20)
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn older_guests_get_upstreams_sizes() {
        let before_limit = Init { minor: 40, ..offer(InitFlags::all()) };
        let without_pages = offer(InitFlags::all() - InitFlags::MAX_PAGES);
        for init in [before_limit, without_pages] {
            let (reply, negotiated, _) = session(&init, &fs());
            assert_eq!((reply.max_write, reply.max_pages, negotiated.max_write), (1 << 20, 256, 1 << 20));
        }
    }

    #[test]
    fn migrated_session_has_what_the_stream_says() {
        let options =
            NegotiatedOptions { posix_acl: true, sup_group_extension: true, ..NegotiatedOptions::default() };
        let mut here = fs();
        here.writeback = true;
        here.security_label = Negotiate::Auto;
        let negotiated = Negotiated::migrated(&options, &here, &Service::default());
        assert!(negotiated.has(ACL | InitFlags::CREATE_SUPP_GROUP | InitFlags::SECURITY_CTX));
        assert!(!negotiated.has(InitFlags::WRITEBACK_CACHE));
        assert!(!negotiated.announce_submounts);
        assert_eq!(NegotiatedOptions::from(&negotiated), options);
    }
}
