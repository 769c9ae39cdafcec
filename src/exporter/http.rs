//! HTTP as far as a scrape needs it: one GET a connection, no body, no header that matters.

/// Longest request in bytes; what follows the first line is not looked at.
pub const MAX_REQUEST: usize = 4096;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `/metrics`: OpenMetrics text.
    Metrics,
    /// `/stat`: JSON.
    Stat,
}

/// What was received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The end has not come.
    Incomplete,
    /// A good one.
    Get(Resource),
    /// One that gets this status.
    Refused(&'static str),
}

/// Looks at the bytes that have come.
pub fn parse(bytes: &[u8]) -> Request {
    let complete =
        bytes.windows(4).any(|end| end == b"\r\n\r\n") || bytes.windows(2).any(|end| end == b"\n\n");
    if !complete {
        return if bytes.len() < MAX_REQUEST {
            Request::Incomplete
        } else {
            Request::Refused("431 Request Header Fields Too Large")
        };
    }
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words.as_slice() else { return Request::Refused("400 Bad Request") };
    if !version.starts_with(b"HTTP/1.") {
        return Request::Refused("505 HTTP Version Not Supported");
    }
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    match (*method, path) {
        (b"GET", b"/metrics") => Request::Get(Resource::Metrics),
        (b"GET", b"/stat") => Request::Get(Resource::Stat),
        (b"GET", _) => Request::Refused("404 Not Found"),
        _ => Request::Refused("405 Method Not Allowed"),
    }
}

/// A whole reply.
pub fn reply(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.0 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Connection: close\r\nCache-Control: no-store\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_requests() {
        for (text, resource) in [
            ("GET /metrics HTTP/1.0\r\n\r\n", Resource::Metrics),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: y\r\n\r\n", Resource::Metrics),
            ("GET /stat?x=y HTTP/1.0\n\n", Resource::Stat),
        ] {
            for end in 1..text.len() {
                assert_eq!(parse(&text.as_bytes()[..end]), Request::Incomplete, "{text} {end}");
            }
            assert_eq!(parse(text.as_bytes()), Request::Get(resource));
        }
    }

    #[test]
    fn others_are_refused() {
        for (text, status) in [
            ("\r\n\r\n", "400"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET  /metrics HTTP/1.0\r\n\r\n", "400"),
            ("POST /metrics HTTP/1.0\r\n\r\n", "405"),
            ("GET / HTTP/1.0\r\n\r\n", "404"),
            ("GET /metrics HTTP/2\r\n\r\n", "505"),
            ("\0\u{ff}\n\n", "400"),
        ] {
            assert!(matches!(parse(text.as_bytes()), Request::Refused(s) if s.starts_with(status)), "{text}");
        }
        assert_eq!(parse(&[b'x'; MAX_REQUEST - 1]), Request::Incomplete);
        assert!(matches!(parse(&[b'x'; MAX_REQUEST]), Request::Refused(s) if s.starts_with("431")));
    }
}
