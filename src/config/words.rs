//! One command line out of three: the file's words, then the service manager's socket, then the user's own words.
//! Since the last one counts, that is also the order of authority.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::file::{self, Setting};
use super::{CliError, Environment};

/// The options that say where front ends connect.
const SOCKETS: [&str; 3] = ["fd", "socket-path", "socket"];

/// Stands for the socket that a service manager will pass, when a file is only checked.
const CHECKED_FD: i32 = 3;

/// A command line with everything in it.
#[derive(Debug)]
pub struct Merged {
    /// All words, the program's name first.
    pub words: Vec<OsString>,
    /// `--check-config`: nothing is to be run.
    pub check_only: bool,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// The user named another socket than the one that was passed.
    pub passed_socket_unused: bool,
}

/// Why they make no command line.
#[derive(Debug)]
pub struct NotMerged {
    /// The reason.
    pub error: CliError,
    /// `--check-config` was asked for.
    pub check_only: bool,
}

/// Merges. Words that are wrong by themselves are left for the parser to refuse.
///
/// # Errors
/// What is wrong with the file or with what the service manager passed.
pub fn merge(own: Vec<OsString>, table: &Command, environment: &Environment) -> Result<Merged, NotMerged> {
    // Mostly there is nothing to merge, and a start is not to wait for the parser twice.
    let names_file = |word: &OsString| {
        let word = word.as_encoded_bytes();
        word.starts_with(b"--config") || word.starts_with(b"--check-config")
    };
    if environment.activation.device.is_empty() && !own.iter().any(names_file) {
        return Ok(Merged { words: own, check_only: false, file: None, passed_socket_unused: false });
    }
    let Ok(given) = file::each_by_itself(table).try_get_matches_from(&own) else {
        return Ok(Merged { words: own, check_only: false, file: None, passed_socket_unused: false });
    };
    let check_only = given.contains_id("check_config");
    let fail = |error| NotMerged { error, check_only };
    let path = |id| given.get_many::<PathBuf>(id).and_then(|mut paths| paths.next_back()).cloned();
    // A bare --check-config checks the file of --config, if there is one, and the command line.
    let path = given
        .get_raw("check_config")
        .and_then(|mut values| values.next_back())
        .map(PathBuf::from)
        .or_else(|| path("config"));
    let settings = match &path {
        Some(path) => file::read(path, table).map_err(|error| fail(error.into()))?,
        None => Vec::new(),
    };

    let socket_given = SOCKETS.iter().any(|name| is_given(&given, table, name));
    let mut passed = passed_socket(environment).map_err(fail)?;
    if check_only && !settings.iter().any(|setting| SOCKETS.contains(&setting.name.as_str())) {
        passed = passed.or(Some(CHECKED_FD));
    }
    let one_shot = given.get_flag("print_capabilities");
    let passed = passed.filter(|_| !one_shot);
    let use_passed = passed.filter(|_| !socket_given);
    let passed_socket_unused = !check_only && passed.is_some_and(|fd| !names_fd(&given, fd)) && socket_given;
    let stands = |setting: &Setting| {
        let overridden = is_given(&given, table, &setting.name) || conflicts(&given, table, &setting.name);
        let socket = SOCKETS.contains(&setting.name.as_str()) || setting.name == "socket-group";
        !(overridden || socket && use_passed.is_some())
    };

    let mut own = own.into_iter();
    let mut words: Vec<OsString> = own.next().into_iter().collect();
    words.extend(settings.into_iter().filter(stands).flat_map(|setting| setting.words));
    words.extend(use_passed.map(|fd| format!("--fd={fd}").into()));
    words.extend(own);
    Ok(Merged { words, check_only, file: path, passed_socket_unused })
}

/// The one socket for front ends.
fn passed_socket(environment: &Environment) -> Result<Option<i32>, CliError> {
    match environment.activation.device.as_slice() {
        [] => Ok(None),
        [fd] => Ok(Some(*fd)),
        more => Err(CliError::ManySockets(more.len())),
    }
}

fn names_fd(given: &ArgMatches, fd: i32) -> bool {
    given.try_get_one::<i32>("fd").ok().flatten() == Some(&fd)
}

/// Whether the user gave the option of this name.
fn is_given(given: &ArgMatches, table: &Command, name: &str) -> bool {
    let mut options = table.get_arguments().filter(|arg| arg.get_long() == Some(name));
    options.any(|arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine))
}

/// Whether the user gave an option that excludes the one of this name.
fn conflicts(given: &ArgMatches, table: &Command, name: &str) -> bool {
    table.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| is_given(given, table, long))).any(
        |arg| {
            let names = |other: &&clap::Arg| other.get_long() == Some(name);
            let excludes = table.get_arg_conflicts_with(arg).iter().any(names);
            let excluded = table
                .get_arguments()
                .filter(names)
                .any(|other| table.get_arg_conflicts_with(other).iter().any(|o| o.get_id() == arg.get_id()));
            excludes || excluded
        },
    )
}
