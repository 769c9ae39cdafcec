//! The operators' documents: options that exist, links that lead somewhere.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tests::paths;
use tests::share::TempDir;
use virtiofsd::config::Environment;
use virtiofsd::config::cli::{self, Action};

use crate::files::options;

const DOCUMENTS: [&str; 3] = ["docs/operations.md", "docs/integration.md", "packaging/README.md"];

/// Options of other programs in the documents, each with the program.
const FOREIGN: [(&str, &str); 7] = [
    ("json", "virtiofsd stat"),
    ("unix-socket", "curl"),
    ("now", "systemctl"),
    ("format", "git"),
    ("memory", "cloud-hypervisor"),
    ("fs", "cloud-hypervisor"),
    ("create", "systemd-tmpfiles"),
];

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

/// The blocks of TOML, but for those that configure other programs, and our example file.
#[test]
fn every_configuration_is_accepted() {
    let mut texts = vec![document("packaging/examples/data.toml").1];
    for name in DOCUMENTS {
        let text = document(name).1.replace("\n   ", "\n");
        let blocks = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
        texts.extend(blocks.filter(|block| !block.contains("virtio_fs")));
    }
    assert!(texts.len() > 3, "the documents have configurations");
    let dir = TempDir::short();
    let file = dir.path().join("share.toml");
    let environment = Environment::of_this_process();
    for mut text in texts {
        if !text.contains("shared-dir") {
            text.insert_str(0, "shared-dir = '/srv/data'\n");
        }
        fs::write(&file, &text).unwrap();
        let words =
            ["virtiofsd", "--fd=3", "--config"].map(OsString::from).into_iter().chain([file.clone().into()]);
        let result = cli::parse(words, &environment);
        assert!(matches!(result, Ok(Action::Run(..))), "{text}: {result:?}");
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
