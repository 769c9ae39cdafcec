//! The command line: what of upstream's virtiofsd 1.13.3 and 1.14.0 there is, and our own options.
//!
//! Where an option is given more than once, the last one counts, but for those that collect (`--translate-uid`
//! and `-gid`, `--uid-map` and `--gid-map`, `-o`).

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use super::options::Options;
use super::words::{self, Merged};
use super::{CliError, Config, Environment, Warning, legacy, validate, vhost_user_json};

/// What the user wants. Texts are for standard output, and the exit status after them is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve the share, after the warnings have been logged.
    Run(Box<Config>, Vec<Warning>),
    /// `--print-capabilities`: a JSON document.
    PrintCapabilities(String),
    /// `--check-config`: all is well; what to say about it.
    Checked(String, Vec<Warning>),
    /// `--help` or `-h`
    Help(String),
    /// `--version`
    Version(String),
}

/// Parses a command line, the first of whose words is the program's name, with the configuration file that it names.
///
/// # Errors
/// [`CliError`]: the first thing that is wrong.
pub fn parse(args: impl Iterator<Item = OsString>, environment: &Environment) -> Result<Action, CliError> {
    let merged = match words::merge(args.collect(), &Options::command(), environment) {
        Ok(merged) => merged,
        Err(not) => return Err(if not.check_only { checked_in_vain(not.error, None) } else { not.error }),
    };
    let Merged { words, check_only, file, passed_socket_unused } = merged;
    match parse_words(words, environment) {
        Ok(Action::Run(config, mut warnings)) => {
            warnings.extend(passed_socket_unused.then_some(Warning::PassedSocketUnused));
            if !check_only {
                return Ok(Action::Run(config, warnings));
            }
            let what = file.map_or("the command line".to_owned(), |file| file.display().to_string());
            Ok(Action::Checked(format!("{what}: ok, shares {}\n", config.shared_dir.display()), warnings))
        }
        Err(error) if check_only => Err(checked_in_vain(error, file)),
        other => other,
    }
}

/// A check has one exit status for all that can be wrong.
fn checked_in_vain(error: CliError, file: Option<PathBuf>) -> CliError {
    match (error, file) {
        (error @ CliError::File(_), _) => error,
        (error, file) => CliError::Check {
            path: file.unwrap_or_else(|| PathBuf::from("command line")),
            problem: Box::new(error),
        },
    }
}

fn parse_words(words: Vec<OsString>, environment: &Environment) -> Result<Action, CliError> {
    let matches = match Options::command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => return not_parsed(&error),
    };
    let mut options = Options::from_arg_matches(&matches).map_err(|error| usage(&error))?;
    for argument in std::mem::take(&mut options.legacy) {
        legacy::apply(&mut options, &argument)?;
    }
    if options.print_capabilities {
        return Ok(Action::PrintCapabilities(vhost_user_json::document()));
    }
    let mut warnings = deprecations(&options, &matches);
    let config = validate::build(options, environment, &mut warnings)?;
    Ok(Action::Run(Box::new(config), warnings))
}

/// The table of options, for what is made from it: shell completions, checks of the documentation.
pub fn command() -> clap::Command {
    Options::command()
}

/// clap reports requests for help as errors too.
fn not_parsed(error: &clap::Error) -> Result<Action, CliError> {
    let text = || error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp => Ok(Action::Help(text())),
        ErrorKind::DisplayVersion => Ok(Action::Version(text())),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Err(CliError::NoArguments(text())),
        _ => Err(usage(error)),
    }
}

/// Without clap's own "error: " before it, as all other errors.
fn usage(error: &clap::Error) -> CliError {
    let text = error.render().to_string();
    CliError::Usage(text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned())
}

fn deprecations(options: &Options, matches: &ArgMatches) -> Vec<Warning> {
    let fallback = matches
        .get_raw("inode_file_handles")
        .is_some_and(|mut values| values.next_back() == Some(OsStr::new("fallback")));
    [
        (options.legacy_foreground, Warning::DeprecatedForeground),
        (options.legacy_debug, Warning::DeprecatedDebug),
        (matches.contains_id("legacy"), Warning::DeprecatedLegacyOptions),
        (options.socket.is_some(), Warning::DeprecatedSocket),
        (fallback, Warning::DeprecatedFallback),
    ]
    .into_iter()
    .filter_map(|(used, warning)| used.then_some(warning))
    .collect()
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
