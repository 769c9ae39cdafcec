//! Bytes of unknown origin → text that is safe in one line of a terminal or a log file.

use std::fmt::Write as _;

/// Longest result in bytes.
pub const MAX_ESCAPED: usize = 2048;

/// What follows when the rest was cut off.
const CUT: &str = "…";

/// Escapes control characters, characters that reorder text, line and paragraph separators, and bytes that are not
/// UTF-8; cuts what is longer than [`MAX_ESCAPED`].
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().min(MAX_ESCAPED));
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            push_char(&mut text, c);
            if text.len() > MAX_ESCAPED {
                return cut(text);
            }
        }
        for byte in chunk.invalid() {
            // Writing into a String can't fail.
            let _ = write!(text, "\\x{byte:02x}");
            if text.len() > MAX_ESCAPED {
                return cut(text);
            }
        }
    }
    text
}

fn push_char(text: &mut String, c: char) {
    // Unicode's explicit directional formatting characters ("Trojan source") and its line separators.
    let reorders =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}');
    if c.is_control() || reorders {
        text.extend(c.escape_default());
    } else {
        text.push(c);
    }
}

fn cut(mut text: String) -> String {
    let mut end = MAX_ESCAPED - CUT.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push_str(CUT);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(escape(b"plain \xc3\xbc"), "plain ü");
        assert_eq!(escape(b"\x1b[2J\r\n\x07\x7f"), "\\u{1b}[2J\\r\\n\\u{7}\\u{7f}");
        assert_eq!(escape("\u{9b}31m\u{202e}x\u{2028}".as_bytes()), "\\u{9b}31m\\u{202e}x\\u{2028}");
        assert_eq!(escape(b"\xff\xfea\xc3"), "\\xff\\xfea\\xc3");
    }

    #[test]
    fn length_is_limited_whatever_comes() {
        for bytes in
            [vec![b'a'; 10_000], vec![0xff; 10_000], vec![b'\n'; 10_000], "ü".repeat(9_999).into_bytes()]
        {
            let text = escape(&bytes);
            assert!(text.len() <= MAX_ESCAPED && text.ends_with(CUT), "{}", text.len());
        }
        assert_eq!(escape(&vec![b'a'; MAX_ESCAPED]).len(), MAX_ESCAPED);
    }
}
