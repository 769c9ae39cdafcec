//! One HTTP request to a metrics socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::StatError;

/// How long a daemon may take to answer.
const TIME: Duration = Duration::from_secs(5);

/// Largest answer in bytes; ours have some 100 KB at most.
const MAX_ANSWER: u64 = 4 << 20;

/// The body of what `target` gives.
///
/// # Errors
/// [`StatError::Connect`], [`StatError::Answered`].
pub fn get(socket: &Path, target: &str) -> Result<String, StatError> {
    let answer =
        exchange(socket, target).map_err(|source| StatError::Connect { path: socket.to_owned(), source })?;
    body(&answer).map(str::to_owned).map_err(|reason| StatError::Answered { path: socket.to_owned(), reason })
}

fn exchange(socket: &Path, target: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIME))?;
    stream.set_write_timeout(Some(TIME))?;
    stream.write_all(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

fn body(answer: &str) -> Result<&str, String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("it is no HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") { Ok(body) } else { Err(status.escape_default().to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_answer_has_a_body() {
        assert_eq!(body("HTTP/1.0 200 OK\r\nA: b\r\n\r\ntext"), Ok("text"));
        assert!(body("HTTP/1.0 404 Not\x1b Found\r\n\r\n").unwrap_err().contains("404 Not\\u{1b}"));
        assert!(body("").is_err());
        assert!(body("SSH-2.0-x\r\n\r\n").is_err());
    }
}
