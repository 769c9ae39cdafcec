//! What upstream has only with host privileges or not at all: requests to the broker, kinds of share and of
//! confinement, features that are negotiated, locks, ioctls, logging. All of it is about our daemon, whatever
//! `VIRTIOFSD_TEST_DAEMON` says.

#[path = "features/flush.rs"]
mod flush;
#[path = "features/follow.rs"]
mod follow;
#[path = "features/follow_cases.rs"]
mod follow_cases;
#[path = "features/follower.rs"]
mod follower;
#[path = "features/ioctl.rs"]
mod ioctl;
#[path = "features/locks.rs"]
mod locks;
#[path = "features/logging.rs"]
mod logging;
#[path = "features/modcaps.rs"]
mod modcaps;
#[path = "features/names.rs"]
mod names;
#[path = "features/negotiated.rs"]
mod negotiated;
#[path = "features/pool.rs"]
mod pool;
#[path = "features/shares.rs"]
mod shares;
#[path = "features/submounts.rs"]
mod submounts;

use std::sync::atomic::Ordering;
use std::time::Duration;

use tests::bounded::bounded;
use tests::daemon::DaemonCommand;
use tests::frontend::DeviceConfig;
use tests::fuse::{Client, Session};
use tests::peers::Implementation;
use tests::share::Share;

const LIMIT: Duration = Duration::from_secs(60);

/// How many chains of the first request queue the daemon has returned: the used ring's index.
fn returned(session: &Session) -> u16 {
    session.clients[0].queue().ring().used().load_u16(2, Ordering::Acquire)
}

/// Our daemon on a share.
fn command(share: &Share) -> DaemonCommand {
    DaemonCommand::serving(&Implementation::Ours, share.path())
}

/// Runs `test` with a new share and a client of a daemon with these arguments, and ends all in the orderly way.
fn with_client(args: &[&str], test: impl FnOnce(&Share, &mut Client) + Send) {
    with_session(args, |share, session| test(share, session.client()));
}

/// Returns what the daemon wrote to stderr.
fn with_session(args: &[&str], test: impl FnOnce(&Share, &mut Session) + Send) -> String {
    with_session_on(Share::new, args, test)
}

/// The same with another kind of share.
fn with_session_on(
    share: impl FnOnce() -> Share + Send,
    args: &[&str],
    test: impl FnOnce(&Share, &mut Session) + Send,
) -> String {
    bounded(LIMIT, || {
        let share = share();
        let mut session = Session::start(command(&share).args(args), DeviceConfig::default());
        test(&share, &mut session);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
        stderr
    })
}
