//! Builds the guest's root file system: a `newc` cpio archive, uncompressed, since TCG would take longer to
//! unpack it than QEMU takes to copy it. Format: Documentation/driver-api/early-userspace/buffer-format.rst
//! of Linux.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Assets, GuestError, Kernel};

const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;

const INIT: &str = include_str!("../../guest/init.sh");
/// The guest's users: the tests' ordinary one has the uid that distributions give to the first person.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n";
const GROUP: &str = "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n";

/// Where the fetched tools and their libraries lie in the guest, apart from those of the host's programs:
/// both may have a C library, of different versions.
const TOOLS: &str = "opt/tools";

struct Node {
    mode: u32,
    /// Of a device: major and minor number.
    device: (u32, u32),
    contents: Vec<u8>,
}

/// An archive in the making: relative paths and what lies there. Parents are made when it is written.
pub(super) struct Initramfs {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Initramfs {
    /// What each guest has: busybox, the agent, users, the kernel's modules.
    pub(super) fn base(assets: &Assets, kernel: Kernel) -> Result<Self, GuestError> {
        let mut this = Self { nodes: BTreeMap::new() };
        // The kernel opens it for init's standard streams before anything is mounted.
        let console = Node { mode: S_IFCHR | 0o600, device: (5, 1), contents: Vec::new() };
        this.nodes.insert("dev/console".into(), console);
        this.add("init", 0o755, INIT.into());
        this.add("etc/passwd", 0o644, PASSWD.into());
        this.add("etc/group", 0o644, GROUP.into());
        this.host_file(&assets.root().join("usr/bin/busybox"), "bin/busybox")?;
        let modules = assets.modules(kernel);
        let cannot_list = || GuestError::host(format!("list {}", modules.display()));
        for entry in fs::read_dir(&modules).map_err(cannot_list())? {
            let entry = entry.map_err(cannot_list())?;
            this.host_file(&entry.path(), Path::new("modules").join(entry.file_name()))?;
        }
        Ok(this)
    }

    fn add(&mut self, inside: impl AsRef<Path>, permissions: u32, contents: Vec<u8>) {
        let inside = inside.as_ref();
        let relative = inside.strip_prefix("/").unwrap_or(inside).to_owned();
        self.nodes.insert(relative, Node { mode: S_IFREG | permissions, device: (0, 0), contents });
    }

    /// Adds a file of the host.
    pub(super) fn host_file(&mut self, host: &Path, inside: impl AsRef<Path>) -> Result<(), GuestError> {
        let cannot_read = || GuestError::host(format!("read {}", host.display()));
        let permissions = fs::metadata(host).map_err(cannot_read())?.permissions().mode() & 0o7777;
        self.add(inside, permissions, fs::read(host).map_err(cannot_read())?);
        Ok(())
    }

    /// Adds a program of the host to `/bin`, its libraries at their own paths.
    pub(super) fn host_program(&mut self, host: &Path) -> Result<(), GuestError> {
        for library in libraries(Command::new("ldd").arg(host))? {
            self.host_file(&library, &library)?;
        }
        self.host_file(host, Path::new("bin").join(host.file_name().unwrap_or_default()))
    }

    /// Adds a fetched program, started through its own linker with its own libraries.
    pub(super) fn tool(&mut self, assets: &Assets, name: &str) -> Result<(), GuestError> {
        let root = assets.root();
        let linker = root.join("lib64/ld-linux-x86-64.so.2");
        let path = root.join("usr/lib/x86_64-linux-gnu");
        let program = root.join("usr/bin").join(name);
        let mut list = Command::new(&linker);
        list.arg("--inhibit-cache").arg("--library-path").arg(&path).arg("--list").arg(&program);
        let lib = Path::new(TOOLS).join("lib");
        for library in libraries(&mut list)? {
            self.host_file(&library, lib.join(library.file_name().unwrap_or_default()))?;
        }
        self.host_file(&linker, lib.join("ld.so"))?;
        self.host_file(&program, lib.join(name))?;
        let wrapper = format!(
            "#!/bin/sh\nexec /{TOOLS}/lib/ld.so --library-path /{TOOLS}/lib /{TOOLS}/lib/{name} \"$@\"\n"
        );
        self.add(Path::new(TOOLS).join(name), 0o755, wrapper.into());
        Ok(())
    }

    /// Writes the archive to a file.
    pub(super) fn write(mut self, to: &Path) -> Result<(), GuestError> {
        let parents: Vec<PathBuf> = self
            .nodes
            .keys()
            .flat_map(|path| path.ancestors().skip(1).filter(|a| !a.as_os_str().is_empty()))
            .map(Path::to_owned)
            .collect();
        for parent in parents {
            let directory = Node { mode: S_IFDIR | 0o755, device: (0, 0), contents: Vec::new() };
            self.nodes.entry(parent).or_insert(directory);
        }
        let mut archive = Vec::new();
        let trailer = Node { mode: 0, device: (0, 0), contents: Vec::new() };
        // In the map's order a directory comes before what it contains, as the kernel needs it.
        for (ino, (path, node)) in (1..).zip(&self.nodes) {
            append(&mut archive, ino, path.as_os_str(), node);
        }
        append(&mut archive, 0, OsStr::new("TRAILER!!!"), &trailer);
        fs::write(to, archive).map_err(GuestError::host(format!("write {}", to.display())))
    }
}

fn append(archive: &mut Vec<u8>, ino: u32, name: &OsStr, node: &Node) {
    let links = 1 + u32::from(node.mode & S_IFDIR != 0);
    let size = u32::try_from(node.contents.len()).unwrap_or(u32::MAX);
    let name_size = u32::try_from(name.len()).unwrap_or(u32::MAX).saturating_add(1);
    let (major, minor) = node.device;
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let header = [ino, node.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
    archive.extend(b"070701");
    for field in header {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(&node.contents);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// The absolute paths in what `ldd` (or the linker's `--list`) prints; none for a static program.
fn libraries(list: &mut Command) -> Result<Vec<PathBuf>, GuestError> {
    let step = format!("list a program's libraries with {list:?}");
    let output = list.env("LC_ALL", "C").output().map_err(GuestError::host(&step))?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let is_static = errors.contains("not a dynamic executable") || text.contains("statically linked");
    if text.contains("not found") || !(output.status.success() || is_static) {
        return Err(GuestError::host(step)(io::Error::other(format!("{text}{errors}"))));
    }
    Ok(text.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
