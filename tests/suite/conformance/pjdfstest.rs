//! pjdfstest, test by test: through the daemon as on the file system underneath.

use tests::pjdfstest;
use tests::share::Share;

use super::mounted;

#[test]
fn pjdfstest_has_the_native_outcome() {
    let native_dir = Share::new();
    let native = pjdfstest::run(native_dir.path());
    let ours = mounted(&["--modcaps=+mknod"], |_, mount| pjdfstest::run(mount));
    pjdfstest::must_differ_as_listed("through the bridge", &native, &ours);
}
