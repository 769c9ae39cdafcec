//! Builds the packages of this source tree, once a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use tests::paths;
use tests::program::program;

/// A release build from nothing, on a slow machine that does other things as well.
pub const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);

/// The one file of `dir` whose name ends with `end` and does not contain `but`.
pub fn only(dir: &Path, end: &str, but: &str) -> PathBuf {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found = names.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.ends_with(end) && !name.contains(but)
    });
    let first = found.next().unwrap_or_else(|| panic!("{} has no file that ends with {end}", dir.display()));
    assert_eq!(found.next(), None, "only one *{end} is expected");
    first
}

/// Where `packaging/build deb rpm` puts its results in this test run; made by the first call.
pub fn packages() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = paths::target_dir().join("packages");
        build(&paths::workspace().join("packaging/build"), &dir);
        dir
    })
}

/// The Debian package.
pub fn deb() -> PathBuf {
    only(packages(), "amd64.deb", "dbgsym")
}

/// The deb's files, unpacked.
pub fn unpacked() -> &'static Path {
    static UNPACKED: OnceLock<PathBuf> = OnceLock::new();
    UNPACKED.get_or_init(|| {
        let dir = packages().join("unpacked");
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        program("dpkg-deb", "dpkg").args(["-x"]).args([&deb(), &dir]).succeed();
        dir
    })
}

/// Runs the build script `script` with results in `dir`, where nothing of an earlier build is left but what cargo
/// can use again.
pub fn build(script: &Path, dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    program(script, "cargo").args(["deb", "rpm", "--output"]).args([dir]).limit(BUILD_LIMIT).succeed();
}
