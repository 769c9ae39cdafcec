//! How the C library's allocator works for this process.
//!
//! By default each thread gets a heap of its own, which grows by a page at a time, each time with a system call that
//! locks the memory map against all threads. A guest that looks up many files made one such call for every 14 of them.
//! Requests allocate hardly anything else, so that one heap, which grows in large steps, serves all threads better.

/// The one heap grows by this much, in bytes.
const STEP: i32 = 1 << 20;
/// This much may be free at its end before it is given back, in bytes.
const SPARE: i32 = 16 << 20;

/// Sets it up. Call it before there are threads.
pub fn prepare() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TOP_PAD, STEP), (libc::M_TRIM_THRESHOLD, SPARE)]
    {
        // SAFETY: the call takes two integers and changes settings of the allocator only. A setting that it refuses
        // stays as it was, and nothing depends on it.
        unsafe { libc::mallopt(parameter, value) };
    }
}
