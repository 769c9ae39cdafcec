//! Each rule of the system-call policies is there for a call that a real daemon makes: daemons serve under strace, and
//! what worker, broker and follower do once their filters are in force must cover the policies, rule by rule. A rule that
//! nobody needs fails here. (That a policy allows what its rules say, and nothing else, is `sandbox/tests/seccomp`'s.)
//!
//! - `trace`: a daemon under strace, and its calls.
//! - `rules`: which line of a trace a rule is for, and why some rules have none.
//! - `work`: what guest and front end do, so that every call is made.

mod rules;
mod trace;
mod work;

use std::time::Duration;

use tests::bounded::bounded;
use tests::frontend::DeviceConfig;
use tests::fuse::wire::init;
use tests::share::Share;

use rules::unmet;
use trace::{Trace, Traced};

const LIMIT: Duration = Duration::from_secs(120);

/// The calls of a daemon with these options, which does this.
fn trace(options: &[&str], work: impl FnOnce(&Share, &mut Traced) + Send) -> Trace {
    bounded(LIMIT, || {
        let share = Share::new();
        let flags = init::GUEST | init::POSIX_ACL | init::DONT_MASK | init::HANDLE_KILLPRIV_V2;
        let mut traced = Traced::start(&share, options, DeviceConfig::default(), flags);
        work(&share, &mut traced);
        traced.finish()
    })
}

#[test]
fn every_rule_of_the_default_policies_is_needed() {
    let mut all = bounded(LIMIT, work::source_and_destination);
    all.add(trace(&["--rlimit-nofile=200"], work::many_inodes));
    // A debugger's signals don't end the first process of a pid namespace.
    all.add(trace(&["--sandbox=chroot"], work::end_by_memory));
    all.add(trace(&[], work::end_by_signal));
    all.add(trace(&["--follow-mounts=always"], work::mounts_of_the_host));
    assert_eq!(unmet("worker", None, &all.worker), [] as [&str; 0], "rules of the worker that nobody needs");
    assert_eq!(unmet("broker", None, &all.broker), [] as [&str; 0], "rules of the broker that nobody needs");
    assert_eq!(
        unmet("follower", None, &all.follower),
        [] as [&str; 0],
        "rules of the follower that nobody needs"
    );
}

#[test]
fn every_rule_of_the_widenings_is_needed() {
    for (policy, widening, options, work) in work::WIDENINGS {
        let trace = trace(options, work);
        let calls = if policy == "worker" { &trace.worker } else { &trace.broker };
        let unmet = unmet(policy, Some(widening), calls);
        assert_eq!(unmet, [] as [&str; 0], "rules of {widening} of the {policy} that nobody needs");
    }
}

#[test]
fn every_widening_has_its_work() {
    let worked: Vec<_> = work::WIDENINGS.iter().map(|(policy, widening, ..)| (*policy, *widening)).collect();
    for policy in ["worker", "broker"] {
        for widening in rules::widenings(policy) {
            assert!(worked.contains(&(policy, widening.as_str())), "{policy}: nobody tries {widening}");
        }
    }
}
