//! The loop over connections: each has a time limit and a size limit, and none can hold up another.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockFlag, accept4};
use nix::unistd::{read, write};

use super::ExporterError;
use super::http::{self, MAX_REQUEST, Request, Resource};
use super::openmetrics;
use super::snapshot::{Snapshot, Subject};
use crate::protocol::metrics::Metrics;

/// Clients served at a time; more wait in the socket's queue.
pub const MAX_CLIENTS: usize = 16;

/// How long one may take to send its request and to take the reply.
const TIME: Duration = Duration::from_secs(5);

struct Client {
    socket: OwnedFd,
    deadline: Instant,
    request: Vec<u8>,
    /// What is left of the reply; empty while the request comes.
    reply: Vec<u8>,
    done: bool,
}

/// Before confinement: accepting must not wait.
///
/// # Errors
/// When the listener is no socket.
pub fn prepare(listener: &OwnedFd) -> Result<(), ExporterError> {
    let set = fcntl(listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    set.map(drop).map_err(|errno| ExporterError::Serve("make the socket non-blocking", errno))
}

/// Serves for ever.
///
/// # Errors
/// When it can't wait for clients any more.
pub fn serve(listener: &OwnedFd, metrics: &Metrics, subject: &Subject) -> Result<(), ExporterError> {
    let begun = Instant::now();
    let mut clients: Vec<Client> = Vec::with_capacity(MAX_CLIENTS);
    loop {
        let acceptable = wait(listener, &clients)?;
        if acceptable {
            clients.extend(accept(listener)?);
        }
        for client in &mut clients {
            client.advance(|resource| body(resource, metrics, subject, begun.elapsed().as_secs_f64()));
        }
        let now = Instant::now();
        clients.retain(|client| !client.done && now < client.deadline);
    }
}

/// Waits until there is something to do; whether there is a new client to take.
fn wait(listener: &OwnedFd, clients: &[Client]) -> Result<bool, ExporterError> {
    let mut fds: Vec<PollFd<'_>> = clients.iter().map(Client::interest).collect();
    let accepting = clients.len() < MAX_CLIENTS;
    if accepting {
        fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
    }
    let first = clients.iter().map(|client| client.deadline).min();
    let left = first.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // Rounded up, so that the deadline has passed when the wait is over.
    let timeout = left.map_or(PollTimeout::NONE, |left| {
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) => Ok(accepting && fds.last().and_then(PollFd::any).unwrap_or(false)),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(ExporterError::Serve("wait for clients", errno)),
    }
}

/// A new client, if it is still there.
fn accept(listener: &OwnedFd) -> Result<Option<Client>, ExporterError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = match accept4(listener.as_raw_fd(), flags) {
        // SAFETY: accept4 has just made this descriptor, and nobody else knows it.
        Ok(socket) => unsafe { OwnedFd::from_raw_fd(socket) },
        Err(Errno::EINVAL | Errno::EBADF | Errno::ENOTSOCK | Errno::EOPNOTSUPP) => {
            return Err(ExporterError::Serve("accept clients", Errno::last()));
        }
        Err(_) => return Ok(None),
    };
    let deadline = Instant::now() + TIME;
    Ok(Some(Client { socket, deadline, request: Vec::new(), reply: Vec::new(), done: false }))
}

fn body(resource: Resource, metrics: &Metrics, subject: &Subject, uptime: f64) -> Vec<u8> {
    let snapshot = Snapshot::take(metrics, subject, uptime);
    let text = match resource {
        Resource::Metrics => openmetrics::text(snapshot).ok().map(|text| (openmetrics::CONTENT_TYPE, text)),
        Resource::Stat => serde_json::to_string(&snapshot).ok().map(|text| ("application/json", text)),
    };
    match text {
        Some((content_type, text)) => http::reply("200 OK", content_type, &text),
        None => refusal("500 Internal Server Error"),
    }
}

fn refusal(status: &str) -> Vec<u8> {
    http::reply(status, "text/plain; charset=utf-8", &format!("{status}\n"))
}

impl Client {
    fn interest(&self) -> PollFd<'_> {
        let flags = if self.reply.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        PollFd::new(self.socket.as_fd(), flags)
    }

    /// Does what can be done without waiting.
    fn advance(&mut self, answer: impl FnOnce(Resource) -> Vec<u8>) {
        if self.reply.is_empty() {
            self.receive(answer);
        }
        if !self.reply.is_empty() {
            self.send();
        }
    }

    fn receive(&mut self, answer: impl FnOnce(Resource) -> Vec<u8>) {
        let mut chunk = [0; MAX_REQUEST];
        let room = MAX_REQUEST - self.request.len();
        match read(&self.socket, chunk.get_mut(..room).unwrap_or_default()) {
            Ok(0) => self.done = true,
            Ok(len) => self.request.extend_from_slice(chunk.get(..len).unwrap_or_default()),
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => self.done = true,
        }
        match http::parse(&self.request) {
            Request::Incomplete => {}
            Request::Get(resource) => self.reply = answer(resource),
            Request::Refused(status) => self.reply = refusal(status),
        }
    }

    fn send(&mut self) {
        match write(&self.socket, &self.reply) {
            Ok(len) => drop(self.reply.drain(..len.min(self.reply.len()))),
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => self.done = true,
        }
        self.done |= self.reply.is_empty();
    }
}
