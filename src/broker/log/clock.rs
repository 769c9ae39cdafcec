//! Time stamps of log lines.

use std::mem::MaybeUninit;
use std::time::{SystemTime, UNIX_EPOCH};

fn now() -> libc::time_t {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    libc::time_t::try_from(since.as_secs()).unwrap_or_default()
}

/// A time that does not fit a `tm` (no clock has it) is shown as nothing.
fn broken_down(
    time: libc::time_t,
    convert: unsafe extern "C" fn(*const libc::time_t, *mut libc::tm) -> *mut libc::tm,
) -> Option<libc::tm> {
    let mut fields = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: `convert` is gmtime_r or localtime_r: it reads one time_t, and writes one tm if it returns non-null.
    unsafe {
        let written = !convert(&raw const time, fields.as_mut_ptr()).is_null();
        written.then(|| fields.assume_init())
    }
}

/// `2026-01-31T23:59:59Z`
pub fn utc_stamp() -> String {
    format_utc(now())
}

fn format_utc(time: libc::time_t) -> String {
    let Some(tm) = broken_down(time, libc::gmtime_r) else { return String::new() };
    let (year, month) = (i64::from(tm.tm_year) + 1900, tm.tm_mon + 1);
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}

/// `Jan 31 23:59:59`, local time, as RFC 3164 wants it. The first call reads the time zone's file.
pub fn syslog_stamp() -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let Some(tm) = broken_down(now(), libc::localtime_r) else { return String::new() };
    let month = usize::try_from(tm.tm_mon).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"Jan");
    format!("{month} {:2} {:02}:{:02}:{:02}", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_have_their_standard_form() {
        assert_eq!(format_utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_utc(951_782_400), "2000-02-29T00:00:00Z");
        let stamp = syslog_stamp();
        assert_eq!(stamp.len(), 15, "{stamp}");
    }
}
