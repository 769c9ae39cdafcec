//! Handles that come together, sealed here or of a migration stream.

use std::os::fd::AsRawFd;

use nix::mount::{MntFlags, umount2};

use super::*;

/// One forged handle, wherever it stands, and nothing is opened; one whose file is gone is only that one's affair.
#[test]
fn a_batch_of_handles_is_opened_in_order_or_not_at_all() {
    in_lab(|lab| {
        let mut server = lab.server();
        fs::write(lab.root.join("share/gone"), "").unwrap();
        let paths = ["file", "gone", "dir", "link"];
        let ids: Vec<_> = paths.iter().map(|path| id(lab.path_fd(path))).collect();
        let sealed: Vec<SealedHandle> =
            paths.iter().map(|path| seal(&mut server, lab.path_fd(path)).unwrap()).collect();
        fs::remove_file(lab.root.join("share/gone")).unwrap();
        let opened = reopen_all(&mut server, sealed.clone()).unwrap();
        for ((path, want), result) in paths.iter().zip(&ids).zip(&opened) {
            match result {
                Ok(fd) => assert_eq!(id(fd), *want, "{path}"),
                Err(errno) => assert_eq!((*path, *errno), ("gone", libc::ESTALE)),
            }
        }
        assert_eq!(opened.iter().filter(|result| result.is_ok()).count(), 3);
        let most: Vec<SealedHandle> = sealed.iter().cycle().take(crate::protocol::MAX_FDS).cloned().collect();
        assert_eq!(reopen_all(&mut server, most).unwrap().len(), crate::protocol::MAX_FDS);
        assert!(reopen_all(&mut server, Vec::new()).unwrap().is_empty());
        for place in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[place].mac[3] ^= 1;
            assert_eq!(reopen_all(&mut server, forged).unwrap_err(), Violation::ForgedHandle);
            let mut moved = sealed.clone();
            moved[place].mount += 1;
            assert_eq!(reopen_all(&mut server, moved).unwrap_err(), Violation::ForgedHandle);
        }
    });
}

/// Handles that anybody may have made: only files in the share open, on its own mount, also removed ones.
#[test]
fn foreign_handles_open_only_files_in_the_share() {
    in_lab(|lab| {
        let mut server = lab.server();
        // On a kernel without the proof the service is off; were it on, nothing at all would open.
        let proves = sys::proves_handles(lab.share.as_fd());
        fs::write(lab.root.join("share/removed"), "").unwrap();
        fs::write(lab.root.join("secret-removed"), "").unwrap();
        fs::hard_link(lab.root.join("secret"), lab.root.join("secret-too")).unwrap();
        let inside =
            ["file", "dir", "dir/deep/file", "link", "fifo", "removed"].map(|path| lab.path_fd(path));
        let outside = ["secret", "secret-removed", "."].map(|path| lab.host_fd(path));
        fs::remove_file(lab.root.join("share/removed")).unwrap();
        fs::remove_file(lab.root.join("secret-removed")).unwrap();
        for fd in &inside {
            let (handle, _) = sys::handle_of(fd.as_fd()).unwrap();
            let opened = admit(&mut server, 0, &handle).unwrap();
            match opened {
                Ok(opened) => assert_eq!(id(&opened), id(fd)),
                Err(errno) => assert!(!proves && errno == libc::ESTALE, "{errno}"),
            }
            for bits in [0x1_0000, 0x2_0000, i32::MIN] {
                let handle_type = handle.handle_type | bits;
                let marked = FileHandle { handle_type, bytes: handle.bytes.clone() };
                assert_eq!(admit(&mut server, 0, &marked).unwrap().unwrap_err(), libc::EINVAL);
            }
            assert_eq!(admit(&mut server, 7, &handle).unwrap_err(), Violation::UnknownMount);
        }
        for fd in &outside {
            let (handle, _) = sys::handle_of(fd.as_fd()).unwrap();
            assert_eq!(admit(&mut server, 0, &handle).unwrap().unwrap_err(), libc::ESTALE);
        }
        // Together it is the same for each.
        let both = inside.iter().zip(outside.iter().cycle()).flat_map(|(a, b)| [a, b]);
        let handles = both.map(|fd| sys::handle_of(fd.as_fd()).unwrap().0).collect();
        for (place, result) in admit_all(&mut server, 0, handles).unwrap().into_iter().enumerate() {
            match result {
                Ok(opened) => assert!(place % 2 == 0 && id(&opened) == id(&inside[place / 2])),
                Err(errno) => {
                    assert!((place % 2 == 1 || !proves) && errno == libc::ESTALE, "{place}: {errno}")
                }
            }
        }
    });
}

/// A mount that is attached to no other any more is forgotten: what was sealed on it is gone, and its number is never
/// another mount's.
#[test]
fn what_was_sealed_on_a_detached_mount_is_gone() {
    in_lab(|lab| {
        // Only in a mount namespace can something be unmounted.
        sandbox::mounts::attach_over_root(lab.share.as_fd()).unwrap();
        let mut server = lab.server();
        let sealed: Vec<SealedHandle> =
            ["sub", "sub/file", "file"].map(|path| seal(&mut server, lab.path_fd(path)).unwrap()).to_vec();
        let (handle, _) = sys::handle_of(lab.path_fd("sub/file").as_fd()).unwrap();
        server.mounts.drop_detached();
        assert!(reopen_all(&mut server, sealed.clone()).unwrap().iter().all(Result::is_ok));

        let sub = lab.path_fd("sub");
        let path = |fd: &OwnedFd| PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()));
        umount2(&path(&sub), MntFlags::MNT_DETACH).unwrap();
        server.mounts.drop_detached();
        let opened = reopen_all(&mut server, sealed.clone()).unwrap();
        let errnos: Vec<_> = opened.iter().map(|result| result.as_ref().err().copied()).collect();
        assert_eq!(errnos, [Some(libc::ESTALE), Some(libc::ESTALE), None]);
        assert_eq!(admit(&mut server, sealed[0].mount, &handle).unwrap().unwrap_err(), libc::ESTALE);
        assert_eq!(seal(&mut server, sub), Err(libc::EXDEV));

        mount_tmpfs(&path(&lab.path_fd("dir")));
        let dir = seal(&mut server, lab.path_fd("dir")).unwrap();
        assert!(dir.mount > sealed[0].mount, "{} is used again", dir.mount);
        assert_eq!(
            reopen_all(&mut server, sealed).unwrap()[1].as_ref().err(),
            Some(&libc::ESTALE),
            "as before"
        );
        assert_eq!(admit(&mut server, dir.mount + 1, &handle).unwrap_err(), Violation::UnknownMount);
    });
}
