//! What this broker can serve: what the options ask for, as far as system and privileges allow.

use std::os::fd::AsFd;

use nix::errno::Errno;
use sandbox::capabilities::{Capability, CapabilitySet};

use super::BrokerError;
use super::launch::share::Share;
use super::launch::worker::View;
use super::mounts::MountTable;
use super::sys;
use crate::config::{Config, InodeFileHandles};
use crate::protocol::Services;
use crate::protocol::message::{ShareKind, ShareMount};

/// The services, and the share's mounts that they work on.
pub struct Offer {
    /// What is served.
    pub services: Services,
    /// The share's mount; none when no service needs it.
    pub mounts: MountTable,
}

impl Offer {
    /// Works it out, and logs what was asked for and can't be had.
    ///
    /// # Errors
    /// Only with `--inode-file-handles=mandatory`.
    pub fn of(config: &Config, share: &Share, view: &View, own: CapabilitySet) -> Result<Self, BrokerError> {
        let asked = config.worker.fs.privileged;
        let mut offer = Self { services: Services::default(), mounts: MountTable::empty() };
        let mounts = own_mount(share, view);
        let known = mounts.as_ref().map(|_| ()).map_err(Clone::clone);
        offer.services.make_device =
            asked.make_device && on("--modcaps=+mknod", &known, own, Capability::CAP_MKNOD);
        offer.services.trusted_xattr =
            asked.trusted_xattr && on("--modcaps=+sys_admin", &known, own, Capability::CAP_SYS_ADMIN);
        let mode = config.worker.fs.inode_file_handles;
        if mode != InodeFileHandles::Never {
            match known.and_then(|()| try_handles(view)) {
                Ok(()) => offer.services.handles = true,
                Err(reason) if mode == InodeFileHandles::Mandatory => {
                    return Err(BrokerError::HandlesMandatory(reason));
                }
                Err(reason) => {
                    ::log::info!("no file handles: {reason}. Each inode in use keeps a file descriptor")
                }
            }
        }
        if offer.services != Services::default()
            && let Ok(mounts) = mounts
        {
            offer.mounts = mounts;
        }
        Ok(offer)
    }
}

/// Only where the share is a mount of its own does an fd's mount prove that the file is in the share.
fn own_mount(share: &Share, view: &View) -> Result<MountTable, String> {
    if view.mount == ShareMount::Host {
        return Err("the share is not a mount of its own (this takes CAP_SYS_ADMIN)".to_owned());
    }
    if share.kind != ShareKind::Directory {
        return Err("the share is a single file".to_owned());
    }
    MountTable::of_share(view.share.as_fd())
        .map_err(|errno| format!("the share's root can't be read: {errno}"))
}

fn on(option: &str, known: &Result<(), String>, own: CapabilitySet, needs: Capability) -> bool {
    let reason = match known {
        Err(reason) => reason.clone(),
        Ok(()) if !own.contains(needs) => format!("the daemon was started without {needs}"),
        Ok(()) => return true,
    };
    ::log::warn!("{option} has no effect: {reason}");
    false
}

/// Makes a handle of the share's root and opens it.
fn try_handles(view: &View) -> Result<(), String> {
    let root = view.share.as_fd();
    let (handle, _) = sys::handle_of(root).map_err(|errno| match errno {
        Errno::EOPNOTSUPP => "the file system has none".to_owned(),
        errno => format!("name_to_handle_at: {errno}"),
    })?;
    let table =
        MountTable::of_share(root).map_err(|errno| format!("the share's root can't be read: {errno}"))?;
    let mount = table.get(0).ok_or("the share's root has no mount")?;
    sys::open_handle(mount, &handle).map(drop).map_err(|errno| match errno {
        Errno::EPERM => "opening them takes CAP_DAC_READ_SEARCH in the host's user namespace".to_owned(),
        errno => format!("open_by_handle_at: {errno}"),
    })
}
