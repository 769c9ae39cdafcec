//! Which daemons are compared: names and command lines.

use std::ffi::OsString;
use std::path::Path;
use std::str::FromStr;

use crate::daemon::DaemonCommand;
use crate::peers::{Implementation, PEERS};

/// Stands for the served directory in a command line; without it the arguments that the daemon needs are added.
const DIRECTORY: &str = "{dir}";
/// Stands for the number of request queues; without it only ours gets more than one.
const QUEUES: &str = "{queues}";

/// A daemon to be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSpec {
    /// Its name in tables.
    pub name: String,
    /// What it is.
    pub implementation: Implementation,
    arguments: Vec<String>,
}

impl FromStr for DaemonSpec {
    type Err = String;

    /// `NAME=COMMAND` or `COMMAND`: words, without quoting, of which the first is a path or one of the names of
    /// [`Implementation::from_str`].
    fn from_str(text: &str) -> Result<DaemonSpec, String> {
        let named = text.split_once('=').filter(|(name, _)| !name.contains([' ', '/', '-']));
        let (name, command) = named.unwrap_or((text, text));
        let mut words = command.split_whitespace();
        let implementation: Implementation = words.next().ok_or("an empty command")?.parse()?;
        Ok(DaemonSpec {
            name: name.trim().into(),
            implementation,
            arguments: words.map(str::to_owned).collect(),
        })
    }
}

/// Ours and all peers, with default options.
pub fn default_daemons() -> Vec<DaemonSpec> {
    let all = std::iter::once(Implementation::Ours).chain(PEERS);
    let spec = |implementation: Implementation| DaemonSpec {
        name: short_name(&implementation),
        implementation,
        arguments: Vec::new(),
    };
    all.map(spec).collect()
}

/// Ours with options that trade something for speed, or the reverse.
pub fn variants() -> Vec<DaemonSpec> {
    let variants = [
        "nopoll=ours --poll-us=0",
        "noseccomp=ours --seccomp=none",
        "fullLL=ours --landlock=full",
        "nohandles=ours --inode-file-handles=never",
        "pool=ours --thread-pool-size=2",
    ];
    variants.iter().map(|text| text.parse().expect("these are well formed")).collect()
}

fn short_name(implementation: &Implementation) -> String {
    match implementation {
        Implementation::Upstream(version) => version.number().into(),
        Implementation::C => "C".into(),
        other => other.name(),
    }
}

impl DaemonSpec {
    /// How many request queues it can serve, at most `wanted`.
    pub fn request_queues(&self, wanted: u16) -> u16 {
        let any = self.arguments.iter().any(|argument| argument.contains(QUEUES));
        if any { wanted } else { self.implementation.request_queues(wanted) }
    }

    /// The command that serves `dir`.
    pub fn command(&self, dir: &Path, queues: u16, xattr: bool) -> DaemonCommand {
        let mut arguments: Vec<OsString> = Vec::new();
        if !self.arguments.iter().any(|argument| argument.contains(DIRECTORY)) {
            arguments.extend(self.implementation.share_arguments(dir));
        }
        if queues > 1 && !self.arguments.iter().any(|argument| argument.contains(QUEUES)) {
            arguments.extend(self.implementation.queue_arguments(queues));
        }
        if xattr {
            arguments.extend(self.implementation.xattr_arguments());
        }
        let dir = dir.to_string_lossy();
        let fill = |argument: &String| argument.replace(DIRECTORY, &dir).replace(QUEUES, &queues.to_string());
        arguments.extend(self.arguments.iter().map(fill).map(OsString::from));
        DaemonCommand::new(self.implementation.binary()).args(arguments)
    }

    /// The command line as the user would write it, for the report.
    pub fn describe(&self) -> String {
        let words = std::iter::once(self.implementation.name()).chain(self.arguments.iter().cloned());
        words.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_optional() {
        let spec: DaemonSpec = "fast=ours --poll-us=50".parse().unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.implementation, spec.arguments.len()),
            ("fast", Implementation::Ours, 1)
        );
        let spec: DaemonSpec = "ours --poll-us=50".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.arguments.len()), ("ours --poll-us=50", 1));
        let spec: DaemonSpec = "/bin/x --a={queues}".parse().unwrap();
        assert_eq!(
            (spec.implementation.clone(), spec.request_queues(4)),
            (Implementation::Binary("/bin/x".into()), 4)
        );
        assert!("x=".parse::<DaemonSpec>().is_err());
        assert!("nothing".parse::<DaemonSpec>().is_err());
    }

    #[test]
    fn variants_are_well_formed() {
        assert!(variants().iter().all(|spec| spec.implementation == Implementation::Ours));
        assert_eq!(default_daemons().len(), 4);
    }
}
