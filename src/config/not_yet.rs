//! Options that are understood but not served yet. They are refused, never ignored; a feature that lands takes
//! its entry out of [`NOT_YET`], and nothing else.

use super::Config;

/// One option that cannot be had yet.
pub struct NotYet {
    /// The option, such as `--thread-pool-size`.
    pub option: &'static str,
    /// A use of it that is refused, for the test that it is.
    pub example: &'static str,
    /// What the user can do instead.
    pub instead: &'static str,
    /// Whether this configuration needs the feature.
    pub asked_for: fn(&Config) -> bool,
}

/// All of them.
pub const NOT_YET: &[NotYet] = &[NotYet {
    option: "--thread-pool-size",
    example: "--thread-pool-size=4",
    instead: "leave it out: requests are served on the threads of --num-request-queues",
    asked_for: |config| config.worker.device.thread_pool_size > 0,
}];
