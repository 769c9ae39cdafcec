//! Something that goes on in a thread of its own while a test does something else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

/// Tells the thread to end, whatever becomes of the one that waits for it.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls `again` with 0, 1, and so on until `act` has ended; `act` begins when the first call has ended. A panic of either
/// is passed on.
pub fn meanwhile<T>(again: impl Fn(usize) + Sync, act: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let (started, wait) = mpsc::channel();
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let (again, stop) = (&again, &stop);
        scope.spawn(move || {
            for round in 0.. {
                again(round);
                if round == 0 {
                    started.send(()).expect("somebody waits");
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        wait.recv().expect("the first call ends");
        act()
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn it_goes_on_as_long_as_the_other_acts_and_ends_with_it() {
        let calls = AtomicUsize::new(0);
        let again = |round| assert_eq!(calls.fetch_add(1, Ordering::Relaxed), round);
        let result = meanwhile(again, || {
            let before = calls.load(Ordering::Relaxed);
            while calls.load(Ordering::Relaxed) < before + 10 {
                thread::yield_now();
            }
            before
        });
        assert!(result >= 1);
        let ended = catch_unwind(AssertUnwindSafe(|| meanwhile(|_| (), || panic!("this one is expected"))));
        assert!(ended.is_err());
        let ended = catch_unwind(AssertUnwindSafe(|| meanwhile(|_| panic!("this one, too"), || ())));
        assert!(ended.is_err());
    }
}
