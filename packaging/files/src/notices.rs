//! The licence notices of everything that is linked into the executable, as those licences want it: each text
//! once, under the names of the packages that came with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::graph::{Graph, Package, PackageId};
use crate::sbom::expression;

/// Beginnings of the names of files that have a licence or a notice, in lower case.
const NAMES: [&str; 6] = ["license", "licence", "copying", "copyright", "notice", "unlicense"];
/// The text for packages that come without one and offer this licence.
const DEFAULT_LICENSE: &str = "Apache-2.0";
const DEFAULT_TEXT: &str = "LICENSE-APACHE";

/// Why the notices could not be written.
#[derive(Debug, Error)]
pub enum NoticeError {
    /// A file or directory could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A package has no licence text, and its licence is not one whose text is known here.
    #[error(
        "package {name} {version} ({license}) comes without a licence text: add one for it to the package build"
    )]
    NoText {
        /// The package.
        name: String,
        /// Its version.
        version: String,
        /// Its licence.
        license: String,
    },
}

/// The document; `top` is the source tree, whose own texts serve for packages that come without.
///
/// # Errors
/// When a text cannot be read, or there is none.
pub fn document(graph: &Graph, top: &Path) -> Result<String, NoticeError> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    for (id, package) in graph.linked() {
        let name = format!("{} {}", id.name, id.version);
        // Writing to a String cannot fail.
        let _ = writeln!(list, "  {name}: {}", expression(&package.license));
        for text in texts_of(id, package, top)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    let default = read(&top.join(DEFAULT_TEXT))?;
    texts.entry(default).or_default().push(format!("Rust standard library {}", graph.rust));

    let mut groups: Vec<(Vec<String>, String)> =
        texts.into_iter().map(|(text, names)| (names, text)).collect();
    groups.sort();
    let mut document = format!(
        "virtiofsd-privsep contains code of these packages, under these licences (SPDX expressions):\n\n{list}  \
         Rust standard library {}: MIT OR Apache-2.0\n\nTheir licence texts and notices follow, each once.\n",
        graph.rust
    );
    let rule = "-".repeat(100);
    for (names, text) in groups {
        let _ = write!(document, "\n{rule}\n{}\n{rule}\n\n{text}", names.join(", "));
    }
    Ok(document)
}

fn texts_of(id: &PackageId, package: &Package, top: &Path) -> Result<Vec<String>, NoticeError> {
    let path = &package.directory;
    let read_error = |source| NoticeError::Read { path: path.clone(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(read_error)? {
        let entry = entry.map_err(read_error)?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if NAMES.iter().any(|start| name.starts_with(start)) && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    if files.is_empty() {
        let expression = expression(&package.license);
        if !expression.split(" OR ").any(|choice| choice == DEFAULT_LICENSE) {
            let (name, version) = (id.name.clone(), id.version.clone());
            return Err(NoticeError::NoText { name, version, license: expression });
        }
        files.push(top.join(DEFAULT_TEXT));
    }
    files.iter().map(|file| read(file)).collect()
}

/// Without white space at line ends and without empty lines around it, so that equal texts are equal.
fn read(path: &Path) -> Result<String, NoticeError> {
    let bytes = fs::read(path).map_err(|source| NoticeError::Read { path: path.to_owned(), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    Ok(lines.join("\n").trim_matches('\n').to_owned() + "\n")
}
