//! Any stream is refused or loaded, with memory in proportion to its length; what was loaded is written and
//! loads again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virtiofsd::worker::migrate::format::{MAX_HANDLE, MAX_PATH, decode, write};

fuzz_target!(|stream: &[u8]| {
    let state = match decode(stream) {
        Ok(state) => state,
        Err(error) => {
            assert!(error.to_string().len() < 1000);
            return;
        }
    };
    // No record is shorter than four bytes, none costs more than its struct and its text.
    assert!(state.inodes.capacity() <= stream.len() && state.handles.capacity() <= stream.len());
    for path in state.mount_paths.values() {
        assert!(path.len() <= MAX_PATH && !path.starts_with('/'));
    }
    for inode in &state.inodes {
        assert!(inode.file_handle.as_ref().is_none_or(|handle| handle.handle.len() <= MAX_HANDLE));
    }
    let mut written = Vec::new();
    write(&state, &mut written).expect("a Vec takes everything");
    assert_eq!(decode(&written).expect("our own stream"), state);
});
