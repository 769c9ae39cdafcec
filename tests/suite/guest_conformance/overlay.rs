//! Overlays in a guest whose upper layer is on the share, as containers in the guest have them, with each way to give
//! overlayfs the attributes that it needs. `docs/operations.md` names these ways.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::major;
use tests::chores;
use tests::guest::{Builder, Guest, GuestError, Kernel};
use tests::script::{Run, must_leave_the_same, world};
use tests::share::Share;

use super::{Served, TestResult, succeed};

const LIMIT: Duration = Duration::from_secs(300);

/// A way: the daemon's options, those of the overlay's mount, and what an attribute's name begins with on the host.
struct Way {
    tag: &'static str,
    options: &'static [&'static str],
    mount: &'static str,
    on_host: &'static str,
}

const WAYS: [Way; 3] = [
    // Nothing is cached here, so that the overlay finds out about everything that went stale.
    Way { tag: "user", options: &["--xattr", "--cache=never"], mount: "userxattr", on_host: "user.overlay." },
    Way {
        tag: "trusted",
        options: &["--xattr", "--modcaps=+sys_admin"],
        mount: "redirect_dir=on,metacopy=on",
        on_host: "trusted.overlay.",
    },
    Way {
        tag: "mapped",
        options: &["--xattrmap=:map::user.virtiofs.:"],
        mount: "redirect_dir=on,metacopy=on",
        on_host: "user.virtiofs.trusted.overlay.",
    },
];

/// What an image would bring. The lower layer is on the share, too, as the image store of a container engine.
const LOWER: &str = "
    mkdir -p lower/dir/inner lower/away/deep upper work merged
    for n in 1 2 3 4 5 6 7 8 9; do echo lower $n >lower/dir/$n; done
    echo kept >lower/kept; echo removed >lower/removed; echo moved >lower/moved; echo inner >lower/dir/inner/file
    ln -s kept lower/link; echo deep >lower/away/deep/file; chown -R 1000:1000 lower/dir; mkfifo lower/fifo";

/// What is done to it: each way in which an overlay keeps a change.
const CHANGES: &str = "
    echo more >>merged/kept; echo new >merged/new
    rm merged/removed; mv merged/moved merged/was-moved; rm merged/dir/5
    chown -h 12:34 merged/link merged/fifo
    rm -r merged/away; mkdir merged/away; echo other >merged/away/other
    su user -c 'cd merged/dir; echo user >by-user; chmod 600 7; mv 8 88; rm 9; ln 88 hard'
    mv merged/dir merged/moved-dir";

/// What is seen then.
const LOOK: &str = "
    cd merged; find . | sort
    cat kept new was-moved away/other moved-dir/1 moved-dir/88 moved-dir/by-user moved-dir/inner/file
    stat -c '%n %F %a %u:%g %h' kept new link fifo moved-dir/7 moved-dir/88 moved-dir/by-user moved-dir/1
    for gone in removed moved dir away/deep moved-dir/5 moved-dir/9 moved-dir/8; do [ ! -e $gone ]; done";

fn mount(root: &str, options: &str) -> String {
    format!(
        "set -e; cd {root}
         mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work,{options} merged
         "
    )
}

/// What the same does where all layers are in the guest's memory.
fn seen_in_memory(guest: &mut Guest, way: &Way) -> Result<String, GuestError> {
    // A tmpfs has no user attributes in the older kernel.
    let options = way.mount.replace("userxattr", "redirect_dir=off");
    guest.check(&format!("mkdir /run/{}; cd /run/{}; {LOWER}", way.tag, way.tag))?;
    guest.check(&format!("{}{CHANGES}{LOOK}", mount(&format!("/run/{}", way.tag), &options)))
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && major(m.rdev()) == 0)
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL");
    let name = std::ffi::CString::new(name).expect("no NUL");
    let mut value = vec![0; 256];
    // SAFETY: both names are C strings; the buffer has the length that is passed.
    let length =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    usize::try_from(length).ok().map(|length| value[..length].to_vec())
}

/// The host finds an upper layer as any overlay's.
fn upper_is_sound(served: &Served, way: &Way) {
    let upper = served.path().join("upper");
    for name in ["removed", "moved", "dir"] {
        assert!(is_whiteout(&upper.join(name)), "{}: {name} is no whiteout", way.tag);
    }
    let opaque = attribute(&upper.join("away"), &format!("{}opaque", way.on_host));
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]), "{}: a directory that was made anew", way.tag);
    if way.mount.contains("redirect_dir=on") {
        let redirect = attribute(&upper.join("moved-dir"), &format!("{}redirect", way.on_host));
        assert_eq!(redirect.as_deref(), Some(&b"dir"[..]), "{}: a directory that was renamed", way.tag);
        assert!(!upper.join("moved-dir/1").exists(), "{}: its files stayed below", way.tag);
    }
    assert_eq!(fs::read_to_string(upper.join("kept")).unwrap(), "kept\nmore\n");
    let link = fs::symlink_metadata(upper.join("link")).unwrap();
    assert_eq!((link.uid(), link.gid(), link.is_symlink()), (12, 34, true));
    let by_user = fs::metadata(upper.join("moved-dir/by-user")).unwrap();
    assert_eq!((by_user.uid(), by_user.gid()), (1000, 1000));
}

fn overlay_works(guest: &mut Guest, served: &Served, way: &Way) -> TestResult {
    let expected = seen_in_memory(guest, way)?;
    let root = guest.mount(way.tag, "")?;
    guest.check(&format!("cd {root}; chmod 777 .; {LOWER}"))?;
    let mount = mount(&root, way.mount);
    let first = guest.check(&format!("{mount}{CHANGES}{LOOK}"))?;
    assert_eq!(first, expected, "{}: on the share, and in memory", way.tag);
    // All of it is in the layers, not in the mounted overlay.
    let again = guest.check(&format!(
        "cd {root}; umount merged; cd /; umount {root}; mount -t virtiofs {} {root}; {mount}{LOOK}",
        way.tag
    ))?;
    assert_eq!(again, expected, "{}: mounted again", way.tag);
    upper_is_sound(served, way);
    Ok(())
}

/// The work of `core` in the overlay.
fn chores_are_done_in_it(guest: &mut Guest, served: &Served, way: &Way) -> TestResult {
    let what = format!("chores, natively and in an overlay in {}", guest.release());
    let native = {
        let share = Share::new();
        fs::create_dir(share.join("chores"))?;
        let lines = chores::run(&share.join("chores"));
        Run { lines, tree: world::tree(&share.join("chores")) }
    };
    let at = format!("/mnt/{}/merged/chores", way.tag);
    let text = succeed(guest, served, &format!("mkdir {at} && exec guest-work chores {at}"), LIMIT)?;
    let got = Run::from_text(&text).ok_or_else(|| format!("the chores said {text}"))?;
    native.must_equal(&what, &got);
    // On the host the directories have the overlay's notes.
    let without_attributes = |tree: &[String]| -> Vec<String> {
        let cut = |line: &String| line.rsplit_once(" Ok(").map_or(line.clone(), |(line, _)| line.to_owned());
        tree.iter().map(cut).collect()
    };
    let on_host = without_attributes(&world::tree(&served.path().join("upper/chores")));
    must_leave_the_same(&what, &without_attributes(&native.tree), &on_host);
    Ok(())
}

fn overlays_in(kernel: Kernel) -> TestResult {
    let served = WAYS.iter().map(|way| Served::new(way.tag, way.options)).collect::<Result<Vec<_>, _>>()?;
    let builder = Guest::builder().kernel(kernel).program(Path::new(env!("CARGO_BIN_EXE_guest-work")));
    let mut guest = served.iter().map(Served::device).fold(builder, Builder::share).boot()?;
    guest.check("insmod /modules/overlay.ko")?;
    for (served, way) in served.iter().zip(&WAYS) {
        overlay_works(&mut guest, served, way).map_err(|e| format!("{e}{}", served.daemon.log()))?;
    }
    chores_are_done_in_it(&mut guest, &served[1], &WAYS[1])?;
    guest.power_off()?;
    served.into_iter().try_for_each(Served::ends_well)
}

#[test]
fn overlays_in_linux_6_1() -> TestResult {
    overlays_in(Kernel::V6_1)
}

#[test]
fn overlays_in_linux_6_12() -> TestResult {
    overlays_in(Kernel::V6_12)
}
