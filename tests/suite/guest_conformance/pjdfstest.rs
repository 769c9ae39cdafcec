//! pjdfstest in a guest: the outcome of each test is the one that it has on the file system underneath.

use std::time::Duration;

use tests::bounded::bounded;
use tests::guest::{Guest, Kernel};
use tests::pjdfstest;
use tests::share::Share;
use tests::tools::PJDFSTEST;

use super::{Served, TestResult};

/// For the native run.
const NATIVE_LIMIT: Duration = Duration::from_secs(300);
/// For the run in a guest, whose processor is emulated.
const GUEST_LIMIT: Duration = Duration::from_secs(400);

fn has_the_native_outcome(kernel: Kernel) -> TestResult {
    let native_dir = Share::new();
    let native = bounded(NATIVE_LIMIT, || pjdfstest::run(native_dir.path()));
    let served = Served::new("t", &["--modcaps=+mknod"])?;
    let config = Share::new();
    let builder = [("pjdfstest.toml", pjdfstest::CONFIG), ("passwd", PASSWD), ("group", GROUP)]
        .iter()
        .fold(Guest::builder(), |guest, (name, text)| {
            guest.file(&config.write(name, text), &format!("/etc/{name}"))
        });
    let builder = builder.kernel(kernel).program(&PJDFSTEST.binary());
    let mut guest = builder.share(served.device()).boot()?;
    let root = guest.mount("t", "")?;
    let output = guest.run_within(&format!("pjdfstest -c /etc/pjdfstest.toml -p {root}"), GUEST_LIMIT)?;
    let got = pjdfstest::parse(&output.stdout_lossy());
    assert!(!got.is_empty(), "{output:?}{}", served.daemon.log());
    pjdfstest::must_differ_as_listed(&format!("in {}", guest.release()), &native, &got);
    guest.power_off()?;
    served.ends_well()
}

#[test]
fn pjdfstest_in_linux_6_1() -> TestResult {
    has_the_native_outcome(Kernel::V6_1)
}

#[test]
fn pjdfstest_in_linux_6_12() -> TestResult {
    has_the_native_outcome(Kernel::V6_12)
}

/// Users that the tests act as, as every system has them.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n";
