//! The operators' documents: options that exist, links that lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use tests::paths;

use crate::files::options;

const DOCUMENTS: [&str; 3] = ["docs/operations.md", "docs/integration.md", "packaging/README.md"];

/// Options of other programs in the documents, each with the program.
const FOREIGN: [(&str, &str); 0] = [];

fn document(name: &str) -> (PathBuf, String) {
    let path = paths::workspace().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    (path, text)
}

#[test]
fn every_option_exists() {
    let own = options();
    for name in DOCUMENTS {
        let (_, text) = document(name);
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
            let Some(option) = word
                .strip_prefix("--")
                .filter(|option| option.starts_with(|c: char| c.is_ascii_alphabetic()))
            else {
                continue;
            };
            let known = own.contains(option) || FOREIGN.iter().any(|(foreign, _)| *foreign == option);
            assert!(known, "{name} mentions --{option}, which virtiofsd does not have");
        }
    }
}

#[test]
fn every_foreign_option_is_mentioned() {
    let all: String = DOCUMENTS.map(|name| document(name).1).concat();
    for (option, program) in FOREIGN {
        assert!(all.contains(&format!("--{option}")), "--{option} of {program} is not mentioned any more");
    }
}

/// Targets of `[text](target)`, without what is after a `#`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap())
}

#[test]
fn every_link_leads_to_a_file() {
    for name in DOCUMENTS {
        let (path, text) = document(name);
        for target in links(&text).filter(|target| !target.is_empty() && !target.contains("://")) {
            let found = path.parent().unwrap_or(Path::new("/")).join(target);
            assert!(found.exists(), "{name}: there is no {target}");
        }
    }
}
