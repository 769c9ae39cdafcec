//! QEMU's machine protocol: commands one after another, and the events that a migration sends.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::GuestError;
use super::error::LogSource;

/// From a command to its answer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// A monitor connection in command mode.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    /// What happened and was not asked for yet.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Takes QEMU's greeting and leaves negotiation mode.
    pub(super) fn new(stream: UnixStream) -> Result<Self, GuestError> {
        let mut this = Self { stream: BufReader::new(stream), events: VecDeque::new() };
        let greeting = this.message("its greeting", Instant::now() + COMMAND_TIMEOUT)?;
        if greeting.get("QMP").is_none() {
            return Err(GuestError::Qmp {
                command: "the connection".to_owned(),
                reason: greeting.to_string(),
            });
        }
        this.execute("qmp_capabilities", &json!({}))?;
        Ok(this)
    }

    /// Runs a command and returns its answer.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, GuestError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(GuestError::host(format!("send {command} to QEMU's monitor")))?;
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        loop {
            let mut message = self.message(command, deadline)?;
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or("(no description)").to_owned();
                return Err(GuestError::Qmp { command: command.to_owned(), reason });
            }
            self.events.push_back(message);
        }
    }

    /// Waits for the end of the migration that was started on this source; returns QEMU's name for it.
    pub(super) fn migration_end(
        &mut self,
        limit: Duration,
        log: LogSource<'_>,
    ) -> Result<String, GuestError> {
        let deadline = Instant::now() + limit;
        loop {
            let event = self.event("MIGRATION", "the migration's end", limit, deadline, log)?;
            if let Some(status @ ("completed" | "failed" | "cancelled")) = event["data"]["status"].as_str() {
                return Ok(status.to_owned());
            }
        }
    }

    /// Waits until the destination's guest runs.
    pub(super) fn resumed(&mut self, limit: Duration, log: LogSource<'_>) -> Result<(), GuestError> {
        let what = "the guest to go on at the destination";
        self.event("RESUME", what, limit, Instant::now() + limit, log).map(drop)
    }

    fn event(
        &mut self,
        name: &str,
        what: &str,
        limit: Duration,
        deadline: Instant,
        log: LogSource<'_>,
    ) -> Result<Value, GuestError> {
        loop {
            while let Some(event) = self.events.pop_front() {
                if event["event"] == name {
                    return Ok(event);
                }
            }
            match self.message(what, deadline) {
                Ok(message) => self.events.push_back(message),
                Err(_) if Instant::now() >= deadline => {
                    return Err(GuestError::TimedOut { what: what.to_owned(), after: limit, log: log() });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads one line of JSON.
    fn message(&mut self, waiting_for: &str, deadline: Instant) -> Result<Value, GuestError> {
        let step = || format!("read from QEMU's monitor while waiting for {waiting_for}");
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut line = String::new();
        self.stream.get_ref().set_read_timeout(Some(left)).map_err(GuestError::host(step()))?;
        self.stream.read_line(&mut line).map_err(GuestError::host(step()))?;
        serde_json::from_str(&line).map_err(|e| GuestError::Qmp {
            command: waiting_for.to_owned(),
            reason: format!("{line:?} is not JSON: {e}"),
        })
    }
}
