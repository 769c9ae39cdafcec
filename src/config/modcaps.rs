//! `--modcaps=+NAME:-NAME:…`: which capabilities are kept.
//!
//! Upstream keeps capabilities of the host. Here the worker never has one: a name either changes what the worker
//! keeps in its own user namespace, or enables the request to the broker that stands in for it, or has nothing
//! to give. [`CAPABILITIES`] says which.

use std::collections::BTreeSet;

use super::{PrivilegedRequests, Warning, WorkerCapability};

/// Why an argument of `--modcaps` is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModcapsError {
    /// Nothing between two colons, or nothing at all.
    #[error("an item is empty; the form is +NAME or -NAME, with colons between them")]
    Empty,
    /// Neither plus nor minus.
    #[error("\"{0}\" begins with neither '+' nor '-'; write +{0} to give it or -{0} to take it")]
    Action(String),
    /// No capability of Linux.
    #[error("\"{0}\" is not a capability of Linux; see capabilities(7)")]
    Unknown(String),
    /// A capability that counts on the host only.
    #[error("+{name} cannot be given: {reason}. Leave it out, or do on the host what the guest needs it for")]
    HostOnly {
        /// The name, as written.
        name: String,
        /// What it would take.
        reason: &'static str,
    },
}

/// What giving a capability means in this design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The worker keeps it in its own user namespace.
    Worker(WorkerCapability),
    /// The broker makes device nodes on request.
    MakeDevice,
    /// The broker handles `trusted.*` attributes on request.
    TrustedXattr,
    /// Nothing that the daemon does for a guest needs it: giving it changes nothing that anybody could see, so
    /// it is not given, with a warning.
    Unneeded,
    /// A guest could see the difference, but only a capability of the host would make it.
    HostOnly(&'static str),
}

use Effect::{HostOnly, MakeDevice, TrustedXattr, Unneeded, Worker};

/// All capabilities of Linux in the order of their numbers (`linux/capability.h`), without `CAP_`.
const CAPABILITIES: [(&str, Effect); 41] = [
    ("CHOWN", Worker(WorkerCapability::Chown)),
    ("DAC_OVERRIDE", Worker(WorkerCapability::DacOverride)),
    ("DAC_READ_SEARCH", Worker(WorkerCapability::DacReadSearch)),
    ("FOWNER", Worker(WorkerCapability::Fowner)),
    ("FSETID", Worker(WorkerCapability::Fsetid)),
    ("KILL", Unneeded),
    ("SETGID", Worker(WorkerCapability::Setgid)),
    ("SETUID", Worker(WorkerCapability::Setuid)),
    ("SETPCAP", Unneeded),
    (
        "LINUX_IMMUTABLE",
        HostOnly(
            "the kernel lets only a process with host privileges change the immutable and append-only flags",
        ),
    ),
    ("NET_BIND_SERVICE", Unneeded),
    ("NET_BROADCAST", Unneeded),
    ("NET_ADMIN", Unneeded),
    ("NET_RAW", Unneeded),
    ("IPC_LOCK", Unneeded),
    ("IPC_OWNER", Unneeded),
    ("SYS_MODULE", Unneeded),
    ("SYS_RAWIO", Unneeded),
    ("SYS_CHROOT", Unneeded),
    ("SYS_PTRACE", Unneeded),
    ("SYS_PACCT", Unneeded),
    ("SYS_ADMIN", TrustedXattr),
    ("SYS_BOOT", Unneeded),
    ("SYS_NICE", Unneeded),
    (
        "SYS_RESOURCE",
        HostOnly("the kernel lets only a process with host privileges exceed quotas and use reserved blocks"),
    ),
    ("SYS_TIME", Unneeded),
    ("SYS_TTY_CONFIG", Unneeded),
    ("MKNOD", MakeDevice),
    ("LEASE", Unneeded),
    ("AUDIT_WRITE", Unneeded),
    ("AUDIT_CONTROL", Unneeded),
    ("SETFCAP", Worker(WorkerCapability::Setfcap)),
    ("MAC_OVERRIDE", HostOnly("the host's security module listens only to a process with host privileges")),
    ("MAC_ADMIN", HostOnly("the host's security module listens only to a process with host privileges")),
    ("SYSLOG", Unneeded),
    ("WAKE_ALARM", Unneeded),
    ("BLOCK_SUSPEND", Unneeded),
    ("AUDIT_READ", Unneeded),
    ("PERFMON", Unneeded),
    ("BPF", Unneeded),
    ("CHECKPOINT_RESTORE", Unneeded),
];

/// What `--modcaps` comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Privileges {
    pub requests: PrivilegedRequests,
    pub worker_caps: BTreeSet<WorkerCapability>,
}

impl Default for Privileges {
    fn default() -> Self {
        Self { requests: PrivilegedRequests::default(), worker_caps: WorkerCapability::DEFAULT.into() }
    }
}

impl Privileges {
    /// Goes through the items from left to right; a later one wins.
    pub fn parse(text: &str, warnings: &mut Vec<Warning>) -> Result<Self, ModcapsError> {
        let mut privileges = Self::default();
        for item in text.split(':') {
            let (give, name) = match item.split_at_checked(1) {
                Some(("+", name)) => (true, name),
                Some(("-", name)) => (false, name),
                None if item.is_empty() => return Err(ModcapsError::Empty),
                _ => return Err(ModcapsError::Action(item.to_owned())),
            };
            let effect = look_up(name).ok_or_else(|| ModcapsError::Unknown(name.to_owned()))?;
            privileges.change(give, name, effect, warnings)?;
        }
        Ok(privileges)
    }

    fn change(
        &mut self,
        give: bool,
        name: &str,
        effect: Effect,
        warnings: &mut Vec<Warning>,
    ) -> Result<(), ModcapsError> {
        match effect {
            Worker(capability) if give => {
                self.worker_caps.insert(capability);
            }
            Worker(capability) => {
                self.worker_caps.remove(&capability);
            }
            MakeDevice => self.requests.make_device = give,
            TrustedXattr => self.requests.trusted_xattr = give,
            Unneeded if give => warnings.push(Warning::CapabilityUnneeded(name.to_owned())),
            HostOnly(reason) if give => {
                return Err(ModcapsError::HostOnly { name: name.to_owned(), reason });
            }
            // Taking away what nobody has.
            Unneeded | HostOnly(_) => {}
        }
        Ok(())
    }
}

fn look_up(name: &str) -> Option<Effect> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CAPABILITIES.iter().find(|(known, _)| *known == bare).map(|(_, effect)| *effect)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Result<Privileges, ModcapsError>, Vec<Warning>) {
        let mut warnings = Vec::new();
        (Privileges::parse(text, &mut warnings), warnings)
    }

    #[test]
    fn names_stand_at_their_numbers() {
        for (number, (name, effect)) in CAPABILITIES.iter().enumerate() {
            if let Worker(capability) = effect {
                assert_eq!(usize::from(capability.number()), number);
                assert_eq!(capability.name(), format!("CAP_{name}"));
            }
        }
        assert_eq!(CAPABILITIES[27].0, "MKNOD");
        assert_eq!(CAPABILITIES[40].0, "CHECKPOINT_RESTORE");
    }

    #[test]
    fn upstreams_own_set_changes_nothing_but_mknod() {
        let (privileges, warnings) = parse("+chown:+dac_override:+fowner:+fsetid:+setgid:+setuid:+setfcap");
        assert_eq!(privileges, Ok(Privileges::default()));
        assert!(warnings.is_empty());
    }

    #[test]
    fn broker_requests_are_enabled_by_name() {
        let (privileges, warnings) = parse("+mknod:+CAP_Sys_Admin");
        let requests = privileges.unwrap().requests;
        assert_eq!(requests, PrivilegedRequests { make_device: true, trusted_xattr: true });
        assert!(warnings.is_empty());
        assert_eq!(parse("+mknod:-mknod").0, Ok(Privileges::default()));
    }

    #[test]
    fn the_worker_loses_what_is_taken() {
        let caps = parse("-chown:-CAP_FOWNER:+dac_read_search:-dac_override").0.unwrap().worker_caps;
        let expected = [
            WorkerCapability::DacReadSearch,
            WorkerCapability::Fsetid,
            WorkerCapability::Setgid,
            WorkerCapability::Setuid,
            WorkerCapability::Setfcap,
        ];
        assert_eq!(caps, BTreeSet::from(expected));
        assert_eq!(parse("-chown:+chown").0, Ok(Privileges::default()));
    }

    #[test]
    fn what_cannot_be_given_is_refused_and_what_is_useless_is_told() {
        assert!(matches!(parse("+sys_resource").0, Err(ModcapsError::HostOnly { .. })));
        assert_eq!(parse("-sys_resource:-net_raw").0, Ok(Privileges::default()));
        let (privileges, warnings) = parse("+net_raw");
        assert_eq!(privileges, Ok(Privileges::default()));
        assert_eq!(warnings, [Warning::CapabilityUnneeded("net_raw".into())]);
    }

    #[test]
    fn what_is_no_list() {
        for (text, expected) in [
            ("", ModcapsError::Empty),
            ("+mknod:", ModcapsError::Empty),
            ("mknod", ModcapsError::Action("mknod".into())),
            ("ümknod", ModcapsError::Action("ümknod".into())),
            ("+", ModcapsError::Unknown(String::new())),
            ("+cap_", ModcapsError::Unknown("cap_".into())),
            ("-mknot", ModcapsError::Unknown("mknot".into())),
        ] {
            assert_eq!(parse(text).0, Err(expected), "{text}");
        }
    }
}
