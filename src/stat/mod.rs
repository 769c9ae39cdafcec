//! `virtiofsd stat SOCKET|PID`: asks a running daemon's metrics socket and shows a table for people, or JSON.
//!
//! - here: the command line, and finding the socket;
//! - `client`: one HTTP request; `table`: numbers → text.

mod client;
mod table;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use thiserror::Error;

use crate::config::cli::{self, Action};
use crate::config::{Environment, SocketSource};
use crate::exporter::snapshot::Snapshot;

/// Shows what a running daemon does
#[derive(Debug, Parser)]
#[command(name = "virtiofsd stat", version)]
struct Options {
    /// The daemon's metrics socket, or its process id
    #[arg(value_name = "SOCKET|PID")]
    target: OsString,

    /// Print the numbers once, as JSON
    #[arg(long)]
    json: bool,

    /// Print the table once; on a terminal it is otherwise shown again and again
    #[arg(long)]
    once: bool,

    /// Seconds between two tables
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// Why nothing can be shown.
#[derive(Debug, Error)]
pub enum StatError {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// Help or version, which is what was asked for.
    #[error("{0}")]
    Answer(String),
    /// No such process, or it is not ours to look at.
    #[error("cannot read the command line of process {pid}: {source}. Name the metrics socket instead")]
    Process {
        /// The process id.
        pid: u32,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Its command line has no metrics socket.
    #[error(
        "process {0} is no virtiofsd with a metrics socket at a path: start it with --metrics-socket PATH, or name the \
         socket that systemd made for it"
    )]
    NoSocket(u32),
    /// The socket can't be asked.
    #[error("cannot ask {}: {source}. Is a virtiofsd with this --metrics-socket running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else answers there.
    #[error("{} does not answer as virtiofsd does: {reason}", path.display())]
    Answered {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Standard output.
    #[error("cannot write: {0}")]
    Write(io::Error),
}

impl StatError {
    /// 2 for the command line, else 1.
    pub fn exit_status(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
}

/// Runs the command; `args` begin with the word `stat`.
///
/// # Errors
/// [`StatError`]; not when the reader of standard output has gone.
pub fn run(args: impl Iterator<Item = OsString>) -> Result<(), StatError> {
    match try_run(args) {
        Err(StatError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(StatError::Answer(text)) => print(&text),
        result => result,
    }
}

fn try_run(args: impl Iterator<Item = OsString>) -> Result<(), StatError> {
    let options = Options::try_parse_from(args).map_err(|error| {
        let text = error.render().to_string();
        if error.use_stderr() {
            StatError::Usage(text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned())
        } else {
            StatError::Answer(text)
        }
    })?;
    let socket = socket_of(&options.target)?;
    if options.json {
        // Not as it came: who knows who answers there.
        let text = serde_json::to_string_pretty(&snapshot(&socket)?);
        let text = text.map_err(|error| StatError::Write(error.into()))?;
        return print(&format!("{text}\n"));
    }
    let again = io::stdout().is_terminal() && !options.once;
    let mut before: Option<Snapshot> = None;
    loop {
        let now = snapshot(&socket)?;
        let text = table::table(&now, before.as_ref());
        // To the first column, then each line over the old one, and nothing below.
        print(&if again { format!("\x1b[H\x1b[2J{text}") } else { text })?;
        if !again {
            return Ok(());
        }
        before = Some(now);
        sleep(Duration::from_secs(options.interval));
    }
}

fn print(text: &str) -> Result<(), StatError> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(StatError::Write)
}

fn snapshot(socket: &Path) -> Result<Snapshot, StatError> {
    let text = client::get(socket, "/stat")?;
    serde_json::from_str(&text)
        .map_err(|error| StatError::Answered { path: socket.to_owned(), reason: error.to_string() })
}

/// A process id is looked up: its command line, read as this program reads it, names the socket.
fn socket_of(target: &OsString) -> Result<PathBuf, StatError> {
    let Some(pid) = target.to_str().and_then(|text| text.parse::<u32>().ok()) else {
        return Ok(PathBuf::from(target));
    };
    let line =
        std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|source| StatError::Process { pid, source })?;
    let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|byte| *byte == 0);
    let words = words.map(|word| OsString::from_vec(word.to_vec()));
    let environment = Environment { root: false, ..Environment::of_this_process() };
    match cli::parse(words, &environment) {
        Ok(Action::Run(config, _)) => match config.metrics {
            Some(SocketSource::Path { path, .. }) => Ok(path),
            _ => Err(StatError::NoSocket(pid)),
        },
        _ => Err(StatError::NoSocket(pid)),
    }
}
