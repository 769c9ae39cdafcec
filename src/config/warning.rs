//! What is said at start about a command line that is accepted.

use std::fmt;

/// Something the user should know; the daemon logs it and goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A socket from systemd, and another one that was named.
    PassedSocketUnused,
    /// `-f`
    DeprecatedForeground,
    /// `-d`
    DeprecatedDebug,
    /// `-o`
    DeprecatedLegacyOptions,
    /// `--socket`
    DeprecatedSocket,
    /// `--inode-file-handles=fallback`
    DeprecatedFallback,
    /// `--modcaps=+NAME` with a capability that nothing here uses.
    CapabilityUnneeded(String),
    /// A rule of the xattr map, as written, that the guest's users can get around.
    XattrMapBypass(String),
    /// A rule of this option, as written, with a count of 0.
    EmptyTranslation {
        /// Such as `--translate-uid`.
        option: &'static str,
        /// The rule.
        rule: String,
    },
    /// A directive of RUST_LOG that has no level.
    RustLogDirective(String),
    /// A regular expression in RUST_LOG.
    RustLogRegex,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PassedSocketUnused => write!(
                f,
                "the socket that systemd passed is not used: the command line names another one. Leave out \
                 --socket-path and --fd to use it"
            ),
            Self::DeprecatedForeground => write!(f, "-f is deprecated and has no effect: leave it out"),
            Self::DeprecatedDebug => write!(f, "-d is deprecated: use --log-level=debug"),
            Self::DeprecatedLegacyOptions => {
                write!(f, "-o is deprecated: use the long options, such as --cache=auto for -o cache=auto")
            }
            Self::DeprecatedSocket => write!(f, "--socket is deprecated: use --socket-path"),
            Self::DeprecatedFallback => {
                write!(f, "--inode-file-handles=fallback is deprecated: use --inode-file-handles=prefer")
            }
            Self::CapabilityUnneeded(name) => {
                write!(f, "--modcaps=+{name} is not given: nothing that this daemon does needs it")
            }
            Self::XattrMapBypass(rule) => write!(
                f,
                "--xattrmap: the guest can also use directly the names that the rule {rule} makes, and so get \
                 around its own access rules; put a \"bad\" rule with scope client for them before the rule that \
                 lets them through"
            ),
            Self::EmptyTranslation { option, rule } => {
                write!(f, "{option} {rule} translates nothing: its count is 0")
            }
            Self::RustLogDirective(directive) => {
                write!(f, "RUST_LOG: \"{directive}\" has no known level and is ignored")
            }
            Self::RustLogRegex => write!(f, "RUST_LOG: the regular expression after '/' is ignored"),
        }
    }
}
