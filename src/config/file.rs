//! `--config FILE`: the options of one device in a TOML file, a key for each, named like the option.
//!
//! A file is turned into words of a command line and goes the way of every command line from there, so that there
//! is one set of rules. What is checked here is what only the file can be blamed for, at its line and column: its
//! syntax, unknown keys, and each value by itself. The reason for reading TOML's own tree instead of a structure by
//! serde: such a structure would be a second table of options.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest file in bytes.
const MAX_LEN: u64 = 64 * 1024;

/// Options that are about one run of the program, or deprecated: no keys.
pub(super) const NOT_KEYS: [&str; 6] =
    ["check-config", "config", "help", "print-capabilities", "socket", "version"];

/// A place in a file; both count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as named.
    pub path: PathBuf,
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path.display(), self.line, self.column)
    }
}

/// Why a configuration file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("cannot read the configuration file {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// It is no TOML.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser expected.
        message: String,
    },
    /// No such option.
    #[error("{place}: there is no option \"{key}\"{hint}")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// What may have been meant, or nothing.
        hint: String,
    },
    /// A value of the wrong kind.
    #[error("{place}: {key} takes {wanted}, not {got}")]
    Kind {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// Such as "true or false".
        wanted: &'static str,
        /// TOML's name of what is there.
        got: &'static str,
    },
    /// A value that the option does not take.
    #[error("{place}: {message}")]
    Value {
        /// Where.
        place: Place,
        /// What is wrong.
        message: String,
    },
}

/// One key, as words of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The option's name, without dashes.
    pub name: String,
    /// Such as `--cache=auto`; several for a list, none where the value says what is so anyway.
    pub words: Vec<OsString>,
}

/// Reads a file; its settings in the order of their keys' names.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read(path: &Path, table: &Command) -> Result<Vec<Setting>, FileError> {
    let failed =
        |reason: &dyn fmt::Display| FileError::Read { path: path.into(), reason: reason.to_string() };
    let text = read_text(path).map_err(|error| failed(&error))?;
    parse(path, &text, table)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_LEN + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_LEN {
        return Err(io::Error::other(format!("it has more than {MAX_LEN} bytes")));
    }
    Ok(text)
}

/// The table of options without their relations: it tells what is given, and whether each value is right by itself,
/// but not whether they go together.
pub fn each_by_itself(table: &Command) -> Command {
    let alone = |option: Arg| {
        option
            .required(false)
            .required_unless_present(Resettable::Reset)
            .conflicts_with(Resettable::Reset)
            .overrides_with(Resettable::Reset)
    };
    let table = table.clone().mut_args(alone).arg_required_else_help(false);
    table.disable_help_flag(true).disable_version_flag(true)
}

struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    table: &'a Command,
}

fn parse(path: &Path, text: &str, table: &Command) -> Result<Vec<Setting>, FileError> {
    let document = Document { path, text, table };
    let tree = DeTable::parse(text).map_err(|error| FileError::Syntax {
        place: document.place(error.span().unwrap_or(0..0)),
        message: error.message().trim().to_owned(),
    })?;
    let mut settings = tree.get_ref().iter().collect::<Vec<_>>();
    // The first error in the file is the one that is told.
    settings.sort_by_key(|(key, _)| key.span().start);
    settings.into_iter().map(|(key, value)| document.setting(key.get_ref(), key.span(), value)).collect()
}

impl Document<'_> {
    fn place(&self, span: Range<usize>) -> Place {
        let before = self.text.get(..span.start.min(self.text.len())).unwrap_or_default();
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Place { path: self.path.to_owned(), line, column }
    }

    fn option(&self, name: &str) -> Option<&Arg> {
        let named = |arg: &&Arg| arg.get_long() == Some(name);
        self.table.get_arguments().find(named).filter(|_| !NOT_KEYS.contains(&name))
    }

    fn setting(
        &self,
        key: &str,
        span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Setting, FileError> {
        let Some(option) = self.option(key) else {
            let dashed = key.replace('_', "-");
            let hint = match self.option(&dashed) {
                Some(_) => format!(": it is written {dashed}"),
                None => String::new(),
            };
            return Err(FileError::UnknownKey { place: self.place(span), key: key.to_owned(), hint });
        };
        let mut words = Vec::new();
        match (option.get_action(), value.get_ref()) {
            (ArgAction::Append, DeValue::Array(items)) => {
                for item in items {
                    words.push(self.word(option, key, item)?);
                }
            }
            (ArgAction::SetTrue, DeValue::Boolean(on)) => words.extend(self.flag(key, *on)),
            (ArgAction::SetTrue, other) => {
                return Err(self.wrong_kind(key, value, "true or false", other));
            }
            // --posix-acl and --security-label may stand without a value.
            (_, DeValue::Boolean(on)) if may_be_bare(option) => words.extend(self.flag(key, *on)),
            _ => words.push(self.word(option, key, value)?),
        }
        Ok(Setting { name: key.to_owned(), words })
    }

    /// `false` is what the opposite option says, where there is one, and else what is so without the option.
    fn flag(&self, key: &str, on: bool) -> Option<OsString> {
        if on {
            return Some(format!("--{key}").into());
        }
        let opposite = format!("no-{key}");
        self.option(&opposite).map(|_| format!("--{opposite}").into())
    }

    fn word(&self, option: &Arg, key: &str, value: &Spanned<DeValue<'_>>) -> Result<OsString, FileError> {
        let wanted = if matches!(option.get_action(), ArgAction::Append) {
            "a list of strings, or a string"
        } else {
            "a string or a number"
        };
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => self.integer(key, value, number.as_str(), number.radix())?,
            other => return Err(self.wrong_kind(key, value, wanted, other)),
        };
        let word = OsString::from(format!("--{key}={text}"));
        let line = [OsString::from("virtiofsd"), word.clone()];
        match each_by_itself(self.table).try_get_matches_from(line) {
            Ok(_) => Ok(word),
            Err(error) => {
                let text = error.render().to_string();
                let first = text.split("\n\n").next().unwrap_or_default();
                let message = first.strip_prefix("error: ").unwrap_or(first);
                let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
                Err(FileError::Value { place: self.place(value.span()), message })
            }
        }
    }

    /// Decimal, as options are; TOML's underscores and other radices are understood.
    fn integer(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        digits: &str,
        radix: u32,
    ) -> Result<String, FileError> {
        let number = i64::from_str_radix(digits, radix);
        number.map(|number| number.to_string()).map_err(|_| FileError::Value {
            place: self.place(value.span()),
            message: format!("{key}: {digits} is too large a number"),
        })
    }

    fn wrong_kind(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        wanted: &'static str,
        got: &DeValue<'_>,
    ) -> FileError {
        FileError::Kind { place: self.place(value.span()), key: key.to_owned(), wanted, got: got.type_str() }
    }
}

fn may_be_bare(option: &Arg) -> bool {
    option.get_num_args().is_some_and(|number| number.min_values() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Vec<Setting>, FileError> {
        let table = super::super::cli::command();
        parse(Path::new("x.toml"), text, &table)
    }

    fn words(text: &str) -> Vec<String> {
        let settings = settings(text).unwrap();
        settings.into_iter().flat_map(|setting| setting.words).map(|w| w.into_string().unwrap()).collect()
    }

    fn complaint(text: &str) -> String {
        settings(text).unwrap_err().to_string()
    }

    #[test]
    fn values_become_words() {
        let text = "shared-dir = \"/a b\"\nxattr = true\nwriteback = false\nrlimit-nofile = 1_024\n\
                    translate-uid = [\"guest:0:1:1\", \"host:1:0:1\"]\nposix-acl = true\n\
                    announce-submounts = false\ntag = 'a=b'\n";
        assert_eq!(
            words(text),
            [
                "--shared-dir=/a b",
                "--xattr",
                "--rlimit-nofile=1024",
                "--translate-uid=guest:0:1:1",
                "--translate-uid=host:1:0:1",
                "--posix-acl",
                "--no-announce-submounts",
                "--tag=a=b"
            ]
        );
        assert_eq!(
            words("translate-gid = \"guest:0:1:1\"\nposix-acl = \"auto\""),
            ["--translate-gid=guest:0:1:1", "--posix-acl=auto"]
        );
    }

    #[test]
    fn errors_point_at_line_and_column() {
        assert_eq!(complaint("tag = \"x\"\n\nshared = \"/\""), "x.toml:3:1: there is no option \"shared\"");
        assert_eq!(
            complaint("shared_dir = \"/\""),
            "x.toml:1:1: there is no option \"shared_dir\": it is written shared-dir"
        );
        assert_eq!(complaint("xattr = 1"), "x.toml:1:9: xattr takes true or false, not integer");
        assert!(
            complaint("  cache =  \"ever\"").starts_with("x.toml:1:12: invalid value 'ever' for '--cache")
        );
        assert!(complaint("cache = \"ever\"").contains("possible values: auto, always"));
        assert!(complaint("tag = \"x\"\ntag = \"y\"").starts_with("x.toml:2:1: duplicate key"));
        assert!(complaint("tag = \"é\" é").starts_with("x.toml:1:11: "));
        assert!(
            complaint("translate-uid = [\"guest:0:1:1\", \"x\"]").starts_with("x.toml:1:33: invalid value")
        );
        assert!(complaint("[share]\ntag = \"x\"").starts_with("x.toml:1:2: there is no option \"share\""));
        assert!(complaint("poll-us = 99999999999999999999").starts_with("x.toml:1:11: "));
        assert!(complaint("poll-us = -1").starts_with("x.toml:1:11: "));
        assert!(
            complaint("tag = true").starts_with("x.toml:1:7: tag takes a string or a number, not boolean")
        );
    }

    #[test]
    fn options_of_one_run_are_no_keys() {
        for key in NOT_KEYS {
            assert!(complaint(&format!("{key} = true")).contains("there is no option"), "{key}");
        }
    }
}
