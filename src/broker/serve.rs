//! The broker's loop: the worker's requests and log lines, its end, and signals, in one `poll`.
//!
//! Nothing here waits for the worker: requests are handled one at a time, each bounded by the protocol's limits;
//! replies that the worker does not take, like everything else that breaks the protocol, end the worker. However
//! it ends, the loop ends too, at the latest when the worker can't even be killed for [`KILL_GRACE`].

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sandbox::process::{Child, Exit};

use super::BrokerError;
use super::launch::follower::Follower;
use super::log::{Forwarder, LineLimit, write_follower_line, write_worker_line};
use super::reap::{self, Outcome};
use super::requests::{Answer, Server};
use super::supervisor::{State, Supervisor};
use crate::protocol::BrokerEnd;
use crate::protocol::channel::Received;

/// How long a worker that has closed its channel may take to end.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// How long a killed worker may take to end: a system call on a dead network file system can hold it up for ever.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// How long the killed follower may take to end, in milliseconds.
const FOLLOWER_GRACE: u16 = 1000;

/// Most bytes of log read in one round.
const LOG_CHUNK: usize = 16 * 1024;

/// Most rounds that empty the log pipe after the worker's end: more than the largest pipe holds.
const MAX_DRAIN: usize = 256;

/// The signals that end the daemon cleanly.
const STOP_SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Takes over the signals that end the daemon: from here on they are events.
///
/// # Errors
/// When the kernel has no more fds for us.
pub fn take_signals() -> Result<SignalFd, BrokerError> {
    let set: SigSet = STOP_SIGNALS.into_iter().collect();
    set.thread_block().map_err(BrokerError::Signals)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(BrokerError::Signals)
}

/// A running device: the worker with all that the broker holds for it.
pub struct Device {
    /// The requests' state.
    pub server: Server,
    /// `None` once it has been given up; dropping it would wait for its end.
    worker: Option<Child>,
    /// `None` once the worker has closed it.
    channel: Option<BrokerEnd>,
    log_pipe: Option<std::fs::File>,
    forwarder: Forwarder,
    signals: SignalFd,
    ending: Option<Ending>,
    supervisor: Supervisor,
    exporter: Option<Child>,
    follower: Option<Follower>,
    /// What the follower says.
    follower_log: Forwarder,
}

/// The worker is about to end.
struct Ending {
    deadline: Instant,
    /// It has been killed.
    killed: bool,
    /// What the end means if it is not what the exit status says.
    outcome: Option<Outcome>,
}

/// What `poll` found.
#[derive(Default)]
struct Ready {
    signal: bool,
    channel: bool,
    log: bool,
    exit: bool,
    exporter_exit: bool,
    follower_exit: bool,
    follower_log: bool,
    detached: bool,
}

impl Device {
    /// Puts the parts together.
    pub fn new(
        server: Server,
        worker: Child,
        channel: BrokerEnd,
        log_pipe: OwnedFd,
        signals: SignalFd,
    ) -> Self {
        let forwarder = Forwarder::new(LineLimit::for_level(log::max_level()), Instant::now());
        let (channel, log_pipe) = (Some(channel), Some(log_pipe.into()));
        let supervisor = Supervisor::default();
        Self {
            server,
            worker: Some(worker),
            channel,
            log_pipe,
            forwarder,
            signals,
            ending: None,
            supervisor,
            exporter: None,
            follower: None,
            follower_log: Forwarder::new(LineLimit::for_level(log::max_level()), Instant::now()),
        }
    }

    /// Tells this service manager how things stand.
    pub fn supervised_by(self, supervisor: Supervisor) -> Self {
        Self { supervisor, ..self }
    }

    /// Watches over the process that shows metrics, too.
    pub fn with_exporter(self, exporter: Option<Child>) -> Self {
        Self { exporter, ..self }
    }

    /// Watches over the process that follows mounts, too.
    pub fn with_follower(self, follower: Option<Follower>) -> Self {
        Self { follower, ..self }
    }

    /// Serves until the worker has ended.
    ///
    /// # Errors
    /// When the kernel can't tell about events or about the worker. The worker is then killed on drop.
    pub fn serve(&mut self) -> Result<Outcome, BrokerError> {
        let outcome = self.serve_to_the_end();
        self.supervisor.tell(State::Stopping);
        self.end_follower();
        outcome
    }

    fn serve_to_the_end(&mut self) -> Result<Outcome, BrokerError> {
        loop {
            let ready = self.wait()?;
            if self.ending.is_none() {
                self.supervisor.keep_alive(Instant::now());
            }
            if ready.signal {
                self.on_signal()?;
            }
            if ready.channel {
                self.on_channel()?;
            }
            if ready.log {
                self.on_log();
            }
            if ready.exporter_exit {
                self.on_exporter_exit()?;
            }
            if ready.detached {
                self.on_detached();
            }
            if ready.follower_log {
                self.on_follower_log();
            }
            if ready.follower_exit {
                self.on_follower_exit()?;
            }
            if ready.exit
                && let Some(worker) = &mut self.worker
                && let Some(exit) = worker.try_wait()?
            {
                return Ok(self.conclude(exit));
            }
            if let Some(outcome) = self.on_deadline()? {
                return Ok(outcome);
            }
        }
    }

    fn wait(&self) -> Result<Ready, BrokerError> {
        let channel = self.channel.as_ref().map(AsFd::as_fd);
        let log = self.log_pipe.as_ref().map(AsFd::as_fd);
        let (signals, pidfd) = (Some(self.signals.as_fd()), self.worker.as_ref().map(Child::pidfd));
        let exporter = self.exporter.as_ref().map(Child::pidfd);
        let follower = self.follower.as_ref();
        let follower_log = follower.map(|follower| follower.log_pipe.as_fd());
        let follower_exit = follower.map(|follower| follower.process.pidfd());
        let detached = follower.map(|follower| follower.detached.as_fd());
        let sources = [signals, channel, log, pidfd, exporter, follower_log, follower_exit, detached];
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(errno) => return Err(BrokerError::Poll(errno)),
        }
        // An error or a hang-up counts as ready: reading tells more.
        let mut events = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let mut of = |source: &Option<_>| source.is_some() && events.next().unwrap_or(false);
        let [signal, channel, log, exit, exporter_exit, follower_log, follower_exit, detached] =
            sources.each_ref().map(&mut of);
        Ok(Ready { signal, channel, log, exit, exporter_exit, follower_exit, follower_log, detached })
    }

    fn timeout(&self) -> PollTimeout {
        let next = match &self.ending {
            Some(ending) => Some(ending.deadline),
            None => self.supervisor.next(),
        };
        let Some(next) = next else { return PollTimeout::NONE };
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up, so that the deadline has passed when the wait is over.
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    }

    fn on_signal(&mut self) -> Result<(), BrokerError> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            let signal = signal.unwrap_or(Signal::SIGTERM);
            log::info!("{signal} received: ending");
            self.supervisor.tell(State::Stopping);
            self.kill(Outcome::Stopped(signal))?;
        }
        Ok(())
    }

    /// The device goes on without metrics.
    fn on_exporter_exit(&mut self) -> Result<(), BrokerError> {
        if let Some(exporter) = &mut self.exporter
            && let Some(exit) = exporter.try_wait()?
        {
            log::error!("the process that shows metrics {exit}: there are none until the next start");
            self.exporter = None;
        }
        Ok(())
    }

    /// The device goes on with the mounts that there are.
    fn on_follower_exit(&mut self) -> Result<(), BrokerError> {
        if let Some(follower) = &mut self.follower
            && let Some(exit) = follower.process.try_wait()?
        {
            self.on_follower_log();
            self.follower_log.finish(&mut write_follower_line);
            log::error!(
                "the process that follows mounts {exit}: new mounts are no longer shown to the guest, and what is \
                 unmounted stays, until the next start"
            );
            self.follower = None;
        }
        Ok(())
    }

    /// What the guest can't reach any more is not to be kept in use here.
    fn on_detached(&mut self) {
        let Some(follower) = &self.follower else { return };
        // How many does not matter.
        let _ = nix::unistd::read(&follower.detached, &mut [0; LOG_CHUNK]);
        self.server.mounts.drop_detached();
    }

    fn on_follower_log(&mut self) {
        let Some(follower) = &self.follower else { return };
        let mut chunk = [0; LOG_CHUNK];
        // At its end the pipe is empty, and the process has ended: that is told elsewhere.
        if let Ok(len) = nix::unistd::read(&follower.log_pipe, &mut chunk) {
            let bytes = chunk.get(..len).unwrap_or_default();
            self.follower_log.feed(bytes, Instant::now(), &mut write_follower_line);
        }
    }

    /// It may be held up by a file system that does not answer: then it is left to whoever reaps our children.
    fn end_follower(&mut self) {
        let Some(mut follower) = self.follower.take() else { return };
        let killed = follower.process.kill();
        let mut fds = [PollFd::new(follower.process.pidfd(), PollFlags::POLLIN)];
        let ended = killed.is_ok() && poll(&mut fds, FOLLOWER_GRACE).is_ok_and(|ready| ready > 0);
        if !ended || !matches!(follower.process.try_wait(), Ok(Some(_))) {
            Box::leak(Box::new(follower));
        }
    }

    fn on_channel(&mut self) -> Result<(), BrokerError> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let (request, fds) = match channel.receive() {
            Ok(Received::Message(request, fds)) => (request, fds),
            Ok(Received::Nothing) => return Ok(()),
            Ok(Received::End) => {
                self.channel = None;
                let deadline = Instant::now() + EXIT_GRACE;
                self.ending.get_or_insert(Ending { deadline, killed: false, outcome: None });
                return Ok(());
            }
            Err(error) => return self.violation(&error),
        };
        let reply = match self.server.handle(request, fds) {
            Ok(Answer::Reply(reply, fds)) => {
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                channel.send(&reply, &fds)
            }
            Ok(Answer::Confined(reports)) => {
                for report in reports {
                    log::warn!("{report}");
                }
                log::info!("Waiting for vhost-user socket connection...");
                self.supervisor.tell(State::Ready);
                Ok(())
            }
            Ok(Answer::Attached) => {
                log::info!("Client connected, servicing requests");
                self.supervisor.tell(State::Serving);
                Ok(())
            }
            Err(violation) => return self.violation(&violation),
        };
        match reply {
            Ok(()) => Ok(()),
            Err(error) => self.violation(&error),
        }
    }

    /// The worker is not what it should be: it may have been taken over, so it gets no second chance.
    fn violation(&mut self, what: &dyn std::fmt::Display) -> Result<(), BrokerError> {
        log::error!(
            "the worker broke the broker protocol and is killed: {what}. A guest may have taken it over, or this is a bug: \
             keep the log and report it"
        );
        self.kill(Outcome::Failed)
    }

    /// Kills the worker, once: the first reason for it is the outcome.
    fn kill(&mut self, outcome: Outcome) -> Result<(), BrokerError> {
        if self.ending.as_ref().is_some_and(|ending| ending.killed) {
            return Ok(());
        }
        // First the signal: a worker that sees its channel close can no longer act on it.
        if let Some(worker) = &self.worker {
            worker.kill()?;
        }
        self.channel = None;
        let deadline = Instant::now() + KILL_GRACE;
        self.ending = Some(Ending { deadline, killed: true, outcome: Some(outcome) });
        Ok(())
    }

    /// Leaves a worker that can't be killed to whoever reaps this process's children.
    fn give_up(&mut self) {
        log::error!(
            "the worker can't be killed: a system call holds it up, probably on a file system that does not \
             answer. It ends when that call does"
        );
        if let Some(worker) = self.worker.take() {
            Box::leak(Box::new(worker));
        }
    }

    fn on_log(&mut self) {
        let Some(pipe) = &mut self.log_pipe else { return };
        let mut chunk = [0; LOG_CHUNK];
        match pipe.read(&mut chunk) {
            Ok(0) => self.log_pipe = None,
            Ok(len) => {
                self.forwarder.feed(
                    chunk.get(..len).unwrap_or_default(),
                    Instant::now(),
                    &mut write_worker_line,
                );
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::warn!("cannot read the worker's log any more: {error}");
                self.log_pipe = None;
            }
        }
    }

    fn on_deadline(&mut self) -> Result<Option<Outcome>, BrokerError> {
        let Some(ending) = &self.ending else { return Ok(None) };
        if Instant::now() < ending.deadline {
            return Ok(None);
        }
        if ending.killed {
            let outcome = ending.outcome.unwrap_or(Outcome::Failed);
            self.give_up();
            return Ok(Some(outcome));
        }
        log::error!("the worker has closed its channel but does not end: killing it");
        self.kill(Outcome::Failed)?;
        Ok(None)
    }

    fn conclude(&mut self, exit: Exit) -> Outcome {
        self.drain_log();
        if let Some(Ending { outcome: Some(outcome), .. }) = self.ending {
            return outcome;
        }
        match reap::explain(exit) {
            None => {
                log::info!("Client disconnected, shutting down");
                Outcome::Disconnected
            }
            Some(why) => {
                log::error!("{why}");
                Outcome::Failed
            }
        }
    }

    fn drain_log(&mut self) {
        let mut chunk = [0; LOG_CHUNK];
        for _ in 0..MAX_DRAIN {
            let Some(pipe) = &mut self.log_pipe else { break };
            match pipe.read(&mut chunk) {
                Ok(len) if len > 0 => {
                    let bytes = chunk.get(..len).unwrap_or_default();
                    self.forwarder.feed(bytes, Instant::now(), &mut write_worker_line);
                }
                _ => self.log_pipe = None,
            }
        }
        self.forwarder.finish(&mut write_worker_line);
    }
}

#[cfg(test)]
mod tests;
