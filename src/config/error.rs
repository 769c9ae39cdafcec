//! Why a command line is refused.

use std::path::PathBuf;

use super::id_translation::TranslationError;
use super::{FileError, IdMapError, LegacyError, ModcapsError};

/// A refused command line. The display form says what is wrong with which option and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// There are no arguments; the text is the short help.
    #[error("{0}")]
    NoArguments(String),
    /// An option is unknown, has a bad value, is missing or does not go with another one.
    #[error("{0}")]
    Usage(String),
    /// The file of `--config` or `--check-config`.
    #[error(transparent)]
    File(#[from] FileError),
    /// What the file says (perhaps together with the command line) does not go together.
    #[error("{}: {problem}", path.display())]
    Check {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: Box<CliError>,
    },
    /// The service manager passed several sockets.
    #[error(
        "systemd passed {0} sockets, but a daemon serves one: use one ListenStream= a unit (a socket for metrics is \
         told apart by FileDescriptorName=metrics)"
    )]
    ManySockets(usize),
    /// An item of `-o`.
    #[error("-o {item}: {problem}")]
    Legacy {
        /// The item, as written.
        item: String,
        /// What is wrong with it.
        #[source]
        problem: LegacyError,
    },
    /// No shared directory, or an empty one, with `-o`. Without `-o` this is a [`CliError::Usage`].
    #[error("nothing is shared: give the directory with --shared-dir DIR or -o source=DIR")]
    NoSharedDir,
    /// No socket. The table of options asks for one first, as a [`CliError::Usage`].
    #[error("there is no socket: give --socket-path PATH or --fd FD")]
    NoSocket,
    /// The socket's path does not fit into the kernel's `sockaddr_un`.
    #[error("--socket-path is {0} bytes long, but the path of a UNIX socket has at most {MAX_SOCKET_PATH}")]
    SocketPathTooLong(usize),
    /// The same of the socket for metrics.
    #[error(
        "--metrics-socket is {0} bytes long, but the path of a UNIX socket has at most {MAX_SOCKET_PATH}"
    )]
    MetricsSocketPathTooLong(usize),
    /// The service manager passed several sockets for metrics.
    #[error("systemd passed {0} sockets with FileDescriptorName=metrics, but a daemon has one")]
    ManyMetricsSockets(usize),
    /// `--modcaps`
    #[error("--modcaps: {0}")]
    Modcaps(#[from] ModcapsError),
    /// `--uid-map` or `--gid-map`: the lines together.
    #[error("{option}: {problem}")]
    IdMap {
        /// The option.
        option: &'static str,
        /// What is wrong.
        #[source]
        problem: IdMapError,
    },
    /// `--uid-map` or `--gid-map` as root.
    #[error(
        "{option} is for users other than root; as root, --worker-ids=shifted:BASE:COUNT chooses the host ids"
    )]
    IdMapAsRoot {
        /// The option.
        option: &'static str,
    },
    /// An option that needs a user namespace, without one.
    #[error("{option} needs the user namespace of --sandbox=namespace")]
    NeedsNamespace {
        /// The option.
        option: &'static str,
    },
    /// `--follow-mounts=always` without a mount namespace of the worker's.
    #[error("--follow-mounts=always needs the mount namespace of --sandbox=namespace")]
    FollowNeedsNamespace,
    /// `--translate-uid` or `--translate-gid`: the rules together.
    #[error("{option}: {problem}")]
    Translation {
        /// The option.
        option: &'static str,
        /// What is wrong.
        #[source]
        problem: TranslationError,
    },
    /// ACLs contain ids, which the daemon does not translate.
    #[error(
        "--posix-acl does not go with {option}: ACLs hold ids that would stay untranslated. Use one of the two, \
         or --posix-acl=never"
    )]
    AclWithTranslation {
        /// The option.
        option: &'static str,
    },
    /// What is about paths, in the mode without.
    #[error(
        "{option} does not go with --migration-mode=file-handles, which has no paths to check: leave it out"
    )]
    NotWithFileHandles {
        /// The option.
        option: &'static str,
    },
}

/// `sizeof(sockaddr_un.sun_path)` without the final NUL (unix(7)).
pub(super) const MAX_SOCKET_PATH: usize = 107;

impl CliError {
    /// The process's exit status: 2 where the words themselves are wrong, 1 where they don't go together, as
    /// upstream.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::NoArguments(_)
            | Self::Usage(_)
            | Self::File(_)
            | Self::Check { .. }
            | Self::ManySockets(_)
            | Self::Legacy { .. }
            | Self::NoSocket => 2,
            Self::NoSharedDir
            | Self::SocketPathTooLong(_)
            | Self::MetricsSocketPathTooLong(_)
            | Self::ManyMetricsSockets(_)
            | Self::Modcaps(_)
            | Self::IdMap { .. }
            | Self::IdMapAsRoot { .. }
            | Self::NeedsNamespace { .. }
            | Self::FollowNeedsNamespace
            | Self::Translation { .. }
            | Self::AclWithTranslation { .. }
            | Self::NotWithFileHandles { .. } => 1,
        }
    }
}
