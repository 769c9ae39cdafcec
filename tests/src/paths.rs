//! Where the build put things. Makes nothing.

use std::path::{Path, PathBuf};

/// Environment variable that moves the cache of [`cache_dir`].
pub const CACHE_VARIABLE: &str = "VIRTIOFSD_TEST_CACHE";

/// The workspace's root directory (where the top `Cargo.toml` is).
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace")
}

/// The directory of the profile that this executable was built with (`target/debug`, `target/release`).
pub fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this executable");
    let dir = exe.parent().expect("an executable lies in a directory");
    // Test executables lie one level deeper, in `deps`.
    if dir.ends_with("deps") {
        dir.parent().expect("deps lies in a profile").to_owned()
    } else {
        dir.to_owned()
    }
}

/// Cargo's target directory: the nearest one above this executable that has cargo's cache tag.
pub fn target_dir() -> PathBuf {
    let profile = profile_dir();
    let tagged = profile.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    tagged.map_or_else(|| workspace().join("target"), Path::to_owned)
}

/// Where fetched peers and guest images are kept between runs: `$VIRTIOFSD_TEST_CACHE`, else `target/cache`.
pub fn cache_dir() -> PathBuf {
    std::env::var_os(CACHE_VARIABLE).map_or_else(|| target_dir().join("cache"), PathBuf::from)
}
