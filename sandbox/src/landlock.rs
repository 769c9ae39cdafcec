//! Landlock: file, network, socket and signal rights that the calling thread, and threads it makes later, give
//! up for good.
//!
//! [`Mode::Free`] gives up what a worker never needs. No data-path operation asks for these rights, so the kernel
//! walks no path for them. [`Mode::Full`] also binds every file access to the share; then each open walks from
//! the file up to the share's root, at a cost for each level.
//!
//! What a kernel lacks is left out and reported in [`Status`], never an error.
//!
//! Two facts of the kernel shape this module:
//!
//! - Whoever handles any file right handles `REFER` as well, whether asked for or not: renames and links from one
//!   directory to another fail with EXDEV where no rule allows them. So wherever a file right is given up, one
//!   rule allows `REFER` beneath the share, and on a kernel without that right (ABI 1, before Linux 5.19) file
//!   rights stay untouched. The rule is looked up only by renames and links across directories.
//! - Making a character device is not given up: an overlay whiteout is one (0:0), and the user namespace already
//!   refuses all others.
//!
//! This is not a mount or user namespace, and it takes no part in system call filtering. Call it before threads
//! are started (a kernel before ABI 8 cannot confine the others), and before seccomp, which has no Landlock call.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Erratum, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};

/// How much is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Off,
    /// What a worker never needs.
    Free,
    /// All file access outside the share, too.
    Full,
}

/// A group of rights that are given up together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// No program is executed. (Linux 5.13; 5.19 for the sake of renames)
    Programs,
    /// No device but those opened before takes an ioctl. (Linux 6.10)
    DeviceIoctls,
    /// No socket file is connected to. (Linux 7.1)
    SocketFiles,
    /// No file outside the share is opened, made, changed or removed. [`Mode::Full`] only.
    OutsideShare,
    /// No TCP port is bound or connected to. (Linux 6.7)
    Tcp,
    /// No UDP port is bound or sent to. (Linux 7.2)
    Udp,
    /// No abstract UNIX socket of others is connected to. (Linux 6.12)
    AbstractSockets,
    /// No process of others is signalled. (Linux 6.12)
    Signals,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Programs => "programs",
            Self::DeviceIoctls => "device ioctls",
            Self::SocketFiles => "socket files",
            Self::OutsideShare => "files outside the share",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::AbstractSockets => "abstract sockets",
            Self::Signals => "signals",
        })
    }
}

/// Why a layer is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The kernel's Landlock has no such right, or the kernel has no Landlock, or it is switched off.
    Kernel,
    /// The kernel cannot allow renames across directories in a process that gives up any file right.
    Renames,
    /// The kernel refuses a file that was reached by its handle and not by a path (Landlock's erratum 3).
    FileHandles,
    /// There is no share for which renames could be allowed.
    NoShare,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "not in this kernel's Landlock, or Landlock is not enabled",
            Self::Renames => {
                "this kernel's Landlock would forbid renames across directories (needs Linux 5.19)"
            }
            Self::FileHandles => {
                "this kernel's Landlock would refuse files reached by handle (its erratum 3 is not fixed)"
            }
            Self::NoShare => "no share was given",
        })
    }
}

/// What [`restrict`] put in force, for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// In force.
    pub in_force: Vec<Layer>,
    /// Asked for by the mode, and not in force.
    pub missing: Vec<(Layer, Obstacle)>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_force: Vec<_> = self.in_force.iter().map(Layer::to_string).collect();
        let in_force = if in_force.is_empty() { "nothing".to_owned() } else { in_force.join(", ") };
        write!(f, "given up: {in_force}")?;
        let mut told = Vec::new();
        for (_, obstacle) in &self.missing {
            if told.contains(obstacle) {
                continue;
            }
            told.push(*obstacle);
            let all = self.missing.iter().filter(|(_, other)| other == obstacle);
            let layers: Vec<_> = all.map(|(layer, _)| layer.to_string()).collect();
            write!(f, "; not {}: {obstacle}", layers.join(", "))?;
        }
        Ok(())
    }
}

/// Why the thread is not confined.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// [`Mode::Full`] without a share.
    #[error("--landlock=full needs the share, and none was given")]
    NoShare,
    /// The share's type could not be read.
    #[error("cannot tell whether the share is a directory: {0}")]
    Share(Errno),
    /// The kernel took the rights one by one but not the set.
    #[error("cannot make a Landlock ruleset: {0}; --landlock=off runs without")]
    Ruleset(RulesetError),
    /// The kernel did not take the rule on the share.
    #[error("cannot add the share to the Landlock ruleset: {0}; --landlock=off runs without")]
    Rule(RulesetError),
    /// The kernel did not put the ruleset in force.
    #[error("cannot put the Landlock ruleset in force: {0}; --landlock=off runs without")]
    Restrict(RulesetError),
}

/// Rights of the newest ABI that this module knows; the landlock crate leaves out what the kernel lacks.
const NEWEST: ABI = ABI::V10;

/// Not `MakeBlock`: a rename or link of a block device that is in the share needs it too. That a worker makes none is
/// its user namespace's matter.
const PROGRAMS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute});
const UDP: BitFlags<AccessNet> = make_bitflags!(AccessNet::{BindUdp | ConnectSendUdp});
const TCP: BitFlags<AccessNet> = make_bitflags!(AccessNet::{BindTcp | ConnectTcp});

/// What a layer is to the kernel.
enum Rights {
    Files(BitFlags<AccessFs>),
    Network(BitFlags<AccessNet>),
    Scope(Scope),
}

impl Layer {
    fn rights(self) -> Rights {
        match self {
            Self::Programs => Rights::Files(PROGRAMS),
            Self::DeviceIoctls => Rights::Files(AccessFs::IoctlDev.into()),
            Self::SocketFiles => Rights::Files(AccessFs::ResolveUnix.into()),
            Self::OutsideShare => Rights::Files(share_rights()),
            Self::Tcp => Rights::Network(TCP),
            Self::Udp => Rights::Network(UDP),
            Self::AbstractSockets => Rights::Scope(Scope::AbstractUnixSocket),
            Self::Signals => Rights::Scope(Scope::Signal),
        }
    }
}

/// All that a worker does beneath the share.
fn share_rights() -> BitFlags<AccessFs> {
    AccessFs::from_all(NEWEST) & !(PROGRAMS | AccessFs::IoctlDev | AccessFs::ResolveUnix)
}

/// Gives up the rights of `mode`, for the calling thread and its children, for good. `share` is an fd, `O_PATH` or
/// not, of the directory or file that the worker serves; it may be a mount that is attached nowhere. Sets
/// no_new_privs, if it isn't set.
///
/// # Errors
///
/// [`LandlockError`]; nothing is given up then. What the kernel lacks is no error but in the [`Status`].
pub fn restrict(mode: Mode, share: Option<BorrowedFd<'_>>) -> Result<Status, LandlockError> {
    let mut wanted = vec![
        Layer::Programs,
        Layer::DeviceIoctls,
        Layer::SocketFiles,
        Layer::Tcp,
        Layer::Udp,
        Layer::AbstractSockets,
        Layer::Signals,
    ];
    match (mode, share) {
        (Mode::Off, _) => return Ok(Status::default()),
        (Mode::Free, _) => {}
        (Mode::Full, None) => return Err(LandlockError::NoShare),
        (Mode::Full, Some(_)) => wanted.push(Layer::OutsideShare),
    }
    let mut status = Status::default();
    for layer in wanted {
        match obstacle(layer, share.is_some()) {
            None => status.in_force.push(layer),
            Some(obstacle) => status.missing.push((layer, obstacle)),
        }
    }
    if !status.in_force.is_empty() {
        enforce(&status.in_force, share)?;
    }
    Ok(status)
}

fn obstacle(layer: Layer, share: bool) -> Option<Obstacle> {
    let rights = layer.rights();
    let files = matches!(rights, Rights::Files(_));
    if !is_supported(&rights) {
        return Some(Obstacle::Kernel);
    }
    if files && !is_supported(&Rights::Files(AccessFs::Refer.into())) {
        return Some(Obstacle::Renames);
    }
    if files && !share {
        return Some(Obstacle::NoShare);
    }
    let handles_work = || Erratum::current().contains(Erratum::DisconnectedDirectoryHandling);
    (layer == Layer::OutsideShare && !handles_work()).then_some(Obstacle::FileHandles)
}

/// Whether the running kernel knows these rights; of the share's, those that its first version had will do.
fn is_supported(rights: &Rights) -> bool {
    let mut probe = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    match rights {
        Rights::Files(access) if *access == share_rights() => {
            let oldest = *access & AccessFs::from_all(ABI::V1);
            (&mut probe).handle_access(oldest).is_ok()
        }
        Rights::Files(access) => (&mut probe).handle_access(*access).is_ok(),
        Rights::Network(access) => (&mut probe).handle_access(*access).is_ok(),
        Rights::Scope(scope) => (&mut probe).scope(*scope).is_ok(),
    }
}

fn enforce(layers: &[Layer], share: Option<BorrowedFd<'_>>) -> Result<(), LandlockError> {
    let mut ruleset = Ruleset::default();
    let mut files = BitFlags::empty();
    for layer in layers {
        match layer.rights() {
            Rights::Files(access) => files |= access | AccessFs::Refer,
            Rights::Network(access) => {
                ruleset = ruleset.handle_access(access).map_err(LandlockError::Ruleset)?
            }
            Rights::Scope(scope) => ruleset = ruleset.scope(scope).map_err(LandlockError::Ruleset)?,
        }
    }
    if !files.is_empty() {
        ruleset = ruleset.handle_access(files).map_err(LandlockError::Ruleset)?;
    }
    let mut created = ruleset.create().map_err(LandlockError::Ruleset)?;
    if let Some(share) = share.filter(|_| !files.is_empty()) {
        let allowed = allowed_beneath(share, files & share_rights())?;
        if !allowed.is_empty() {
            created = created.add_rule(PathBeneath::new(share, allowed)).map_err(LandlockError::Rule)?;
        }
    }
    created.restrict_self().map_err(LandlockError::Restrict)?;
    Ok(())
}

/// The kernel takes rights about directory entries on a directory only; a share may be one file.
fn allowed_beneath(
    share: BorrowedFd<'_>,
    rights: BitFlags<AccessFs>,
) -> Result<BitFlags<AccessFs>, LandlockError> {
    let mode = fstat(share.as_fd()).map_err(LandlockError::Share)?.st_mode;
    if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
        return Ok(rights);
    }
    Ok(rights & AccessFs::from_file(NEWEST))
}
