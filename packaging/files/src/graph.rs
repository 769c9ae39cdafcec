//! What the daemon is made of: the packages of its dependency graph, for this machine's target, with the
//! features that its release build has.
//!
//! `cargo tree` resolves exactly that (`cargo metadata` also counts features that only the tests turn on);
//! `cargo metadata` tells where a package's files are; the lock file has the checksums.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use thiserror::Error;

/// The daemon's package.
const ROOT: &str = "virtiofsd";

/// Name and version; one build has at most one package with both the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackageId {
    /// As in its manifest.
    pub name: String,
    /// As in its manifest.
    pub version: String,
}

/// One package of the graph.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its code is in the executable; otherwise it only ran during the build (a procedural macro or a build
    /// script's dependency).
    pub linked: bool,
    /// One of this source tree's.
    pub own: bool,
    /// An SPDX expression.
    pub license: String,
    /// One line.
    pub description: String,
    /// Where its sources are developed.
    pub repository: Option<String>,
    /// SHA-256 of the file that the registry has, in hexadecimal; none for those of this source tree.
    pub sha256: Option<String>,
    /// Its unpacked sources.
    pub directory: PathBuf,
    /// What it depends on.
    pub dependencies: BTreeSet<PackageId>,
}

/// The whole graph.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The daemon.
    pub root: PackageId,
    /// All packages, the daemon among them.
    pub packages: BTreeMap<PackageId, Package>,
    /// `rustc`'s version, such as `1.95.0`, which is also that of the standard library in the executable.
    pub rust: String,
}

/// Why the graph could not be made.
#[derive(Debug, Error)]
pub enum GraphError {
    /// A program could not be started.
    #[error("cannot run {program}: {source}")]
    Run {
        /// Which one.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A program failed.
    #[error("{command} failed; its message is above")]
    Failed {
        /// With its arguments.
        command: String,
    },
    /// A program said something that is not understood here.
    #[error("cannot understand this output of {program}: {line}")]
    Output {
        /// Which one.
        program: &'static str,
        /// What it said.
        line: String,
    },
    /// The answer of `cargo metadata` is not as documented.
    #[error("cannot understand the output of cargo metadata: {0}")]
    Metadata(#[from] serde_json::Error),
    /// The lock file could not be read.
    #[error("cannot read {path}: {source}")]
    Lock {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A package lacks something that it must have.
    #[error("package {name} {version} has no {what}")]
    Missing {
        /// The package.
        name: String,
        /// Its version.
        version: String,
        /// What is not there.
        what: &'static str,
    },
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    version: String,
    license: Option<String>,
    description: Option<String>,
    repository: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
}

impl Graph {
    /// The graph of the daemon in the source tree at `top`.
    ///
    /// # Errors
    /// When cargo fails, or a package has no licence or checksum.
    pub fn of_daemon(top: &Path) -> Result<Self, GraphError> {
        let tree = Tree::parse(&cargo_tree(top, "normal,build")?)?;
        let linked: BTreeSet<_> =
            Tree::parse(&cargo_tree(top, "normal,no-proc-macro")?)?.dependencies.into_keys().collect();
        let lock = top.join("Cargo.lock");
        let lock = fs::read_to_string(&lock).map_err(|source| GraphError::Lock { path: lock, source })?;
        let checksums = checksums(&lock);
        let metadata = run(cargo(top).args(["metadata", "--locked", "--format-version=1"]))?;
        let metadata: Metadata = serde_json::from_str(&metadata)?;

        let mut packages = BTreeMap::new();
        for (id, dependencies) in tree.dependencies {
            let found = metadata.packages.iter().find(|p| p.name == id.name && p.version == id.version);
            let found = found.ok_or_else(|| missing(&id, "entry in the output of cargo metadata"))?;
            let own = found.source.is_none();
            let sha256 = checksums.get(&id).cloned();
            if sha256.is_none() && !own {
                return Err(missing(&id, "checksum in Cargo.lock"));
            }
            let package = Package {
                linked: linked.contains(&id),
                own,
                license: found.license.clone().ok_or_else(|| missing(&id, "licence in its manifest"))?,
                description: found.description.as_deref().unwrap_or_default().trim().to_owned(),
                repository: found.repository.clone(),
                sha256,
                directory: found.manifest_path.parent().unwrap_or(top).to_owned(),
                dependencies,
            };
            packages.insert(id, package);
        }
        Ok(Self { root: tree.root, packages, rust: rust_version()? })
    }

    /// The packages of others whose code is in the executable.
    pub fn linked(&self) -> impl Iterator<Item = (&PackageId, &Package)> {
        self.packages.iter().filter(|(_, package)| package.linked && !package.own)
    }
}

fn missing(id: &PackageId, what: &'static str) -> GraphError {
    GraphError::Missing { name: id.name.clone(), version: id.version.clone(), what }
}

fn cargo(top: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(top);
    command
}

fn cargo_tree(top: &Path, edges: &str) -> Result<String, GraphError> {
    let arguments =
        ["tree", "--locked", "--package", ROOT, "--prefix=depth", "--format=|{p}|", "--edges", edges];
    run(cargo(top).args(arguments))
}

fn run(command: &mut Command) -> Result<String, GraphError> {
    let text = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| GraphError::Run { program: text.clone(), source })?;
    if !output.status.success() {
        return Err(GraphError::Failed { command: text });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `rustc 1.95.0 (f2d3ce0bd 2026-03-21)`
fn rust_version() -> Result<String, GraphError> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let line = run(Command::new(rustc).arg("--version"))?;
    let version = line.split_whitespace().nth(1).map(str::to_owned);
    version.ok_or(GraphError::Output { program: "rustc --version", line })
}

/// What `cargo tree` printed.
struct Tree {
    root: PackageId,
    dependencies: BTreeMap<PackageId, BTreeSet<PackageId>>,
}

impl Tree {
    /// Lines such as `2|log v0.4.28|`, or `2|log v0.4.28| (*)` for a package whose own dependencies were listed
    /// before. The number is the depth.
    fn parse(text: &str) -> Result<Self, GraphError> {
        let mut path: Vec<PackageId> = Vec::new();
        let mut dependencies: BTreeMap<PackageId, BTreeSet<PackageId>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (depth, id) = tree_line(line)
                .filter(|(depth, _)| *depth <= path.len())
                .ok_or_else(|| GraphError::Output { program: "cargo tree", line: line.to_owned() })?;
            path.truncate(depth);
            dependencies.entry(id.clone()).or_default();
            if let Some(parent) = path.last() {
                dependencies.entry(parent.clone()).or_default().insert(id.clone());
            }
            path.push(id);
        }
        let root = path.into_iter().next();
        let root = root.ok_or(GraphError::Output { program: "cargo tree", line: String::new() })?;
        Ok(Self { root, dependencies })
    }
}

fn tree_line(line: &str) -> Option<(usize, PackageId)> {
    let mut fields = line.split('|');
    let depth = fields.next()?.parse().ok()?;
    let mut words = fields.next()?.split_whitespace();
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    Some((depth, PackageId { name: name.to_owned(), version: version.to_owned() }))
}

/// The lock file's `[[package]]` tables have one `key = "value"` a line.
fn checksums(lock: &str) -> BTreeMap<PackageId, String> {
    let value = |table: &str, key: &str| {
        let prefix = format!("{key} = \"");
        let line = table.lines().find_map(|line| line.strip_prefix(prefix.as_str()))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let tables = lock.split("[[package]]").skip(1);
    tables
        .filter_map(|table| {
            let id = PackageId { name: value(table, "name")?, version: value(table, "version")? };
            Some((id, value(table, "checksum")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, version: &str) -> PackageId {
        PackageId { name: name.to_owned(), version: version.to_owned() }
    }

    #[test]
    fn a_tree() {
        let text = "0|virtiofsd v0.1.0 (/src)|\n1|log v0.4.1|\n2|a v1.0.0 (proc-macro)|\n1|b v2.0.0|\n2|log v0.4.1| (*)\n";
        let tree = Tree::parse(text).unwrap();
        assert_eq!(tree.root, id("virtiofsd", "0.1.0"));
        let of = |name, version| tree.dependencies[&id(name, version)].iter().cloned().collect::<Vec<_>>();
        assert_eq!(of("virtiofsd", "0.1.0"), [id("b", "2.0.0"), id("log", "0.4.1")]);
        assert_eq!(of("log", "0.4.1"), [id("a", "1.0.0")]);
        assert_eq!(of("b", "2.0.0"), [id("log", "0.4.1")]);
        for broken in ["", "log v1\n", "1|log v1|\n", "0|log|\n", "0|x v1|\n2|y v1|\n"] {
            assert!(Tree::parse(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"r\"\nchecksum = \"00ff\"\n\
                    dependencies = [\n \"b\",\n]\n\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n";
        let found = checksums(lock);
        assert_eq!(found.get(&id("a", "1.0.0")).map(String::as_str), Some("00ff"));
        assert_eq!(found.len(), 1);
    }
}
