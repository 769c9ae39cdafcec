//! What a reviewer would otherwise have to look for: who imports whom, where `unsafe` is, how long files are, and
//! whether the documents still say what is true.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use tests::paths;
use tests::peers::Implementation;

/// Files that may be longer than [`MAX_LINES`], each with a reason.
const LONG_FILES: &[(&str, &str)] =
    &[("tests/suite/frontend.rs", "one test after another; nothing in it depends on the rest")];

/// Where to stop and think.
const MAX_LINES: usize = 600;

/// Where `unsafe` may be: system calls, guest memory, and the moments between fork and exec.
const UNSAFE_FILES: &[&str] = &[
    "sandbox/src/fds.rs",
    "sandbox/src/process/child.rs",
    "sandbox/src/process/mod.rs",
    "sandbox/src/sys.rs",
    "src/broker/launch/socket.rs",
    "src/broker/log/clock.rs",
    "src/broker/sys.rs",
    "src/exporter/serve.rs",
    "src/main.rs",
    "src/protocol/channel.rs",
    "src/protocol/metrics/memory.rs",
    "src/worker/buffers.rs",
    "src/worker/deferred.rs",
    "src/worker/fs/io.rs",
    "src/worker/fs/sys.rs",
    "src/worker/heap.rs",
    "src/worker/regions.rs",
    "src/worker/vring.rs",
];

/// All files of the sources and documents with this ending, by path from the workspace's root.
fn files(ending: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for top in ["src", "sandbox", "tests", "docs", "packaging", "seccomp-policies", "README.md"] {
        collect(&paths::workspace().join(top), ending, &mut found);
    }
    assert!(!found.is_empty(), "no *{ending} at all");
    found
}

fn collect(path: &Path, ending: &str, found: &mut BTreeMap<String, String>) {
    if path.is_dir() {
        if path.ends_with("target") || path.ends_with("corpus") || path.ends_with("artifacts") {
            return;
        }
        for entry in fs::read_dir(path).expect("a source directory") {
            collect(&entry.expect("a listing").path(), ending, found);
        }
        return;
    }
    let name = path.strip_prefix(paths::workspace()).expect("below it").to_str().expect("a plain name");
    if name.ends_with(ending) {
        found.insert(name.to_owned(), fs::read_to_string(path).expect("a text file"));
    }
}

/// A source file without its comments (and so without links of documentation).
fn code(text: &str) -> String {
    text.lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn broker_and_worker_never_import_each_other() {
    let mut wrong = Vec::new();
    for (name, text) in files(".rs") {
        let forbidden: &[&str] = match () {
            () if name.starts_with("src/worker/") => &["broker"],
            () if name.starts_with("src/broker/") => &["worker"],
            // It knows nothing of either.
            () if name.starts_with("src/follower/") => &["broker", "worker", "exporter"],
            () if name.starts_with("src/protocol/") && !name.contains("test") => &["broker", "worker"],
            () if name.starts_with("src/config/") && !name.contains("test") => &["broker", "worker"],
            () if name.starts_with("sandbox/src/") => &["broker", "worker", "protocol", "config"],
            () => &[],
        };
        for module in forbidden {
            for import in [format!("crate::{module}::"), format!("crate::{module};")] {
                if code(&text).contains(&import) {
                    wrong.push(format!("{name}: {import}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The FUSE code is only reached through the worker, the privileged code only through the broker.
#[test]
fn the_broker_never_parses_fuse_and_never_maps_guest_memory() {
    for (name, text) in files(".rs").into_iter().filter(|(name, _)| name.starts_with("src/broker/")) {
        for word in ["fuse::", "vm_memory", "virtio_queue", "vhost::", "vhost_user_backend"] {
            assert!(!code(&text).contains(word), "{name} has to do with {word}");
        }
    }
}

#[test]
fn unsafe_stays_where_it_is_listed() {
    let is_test = |name: &str| {
        name.starts_with("tests/") || name.starts_with("sandbox/tests/") || name.contains("test")
    };
    let found: BTreeSet<String> = files(".rs")
        .into_iter()
        .filter(|(name, text)| {
            !is_test(name)
                && code(text).split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe")
        })
        .map(|(name, _)| name)
        .collect();
    let listed: BTreeSet<String> = UNSAFE_FILES.iter().map(|name| (*name).to_owned()).collect();
    let new: Vec<_> = found.difference(&listed).collect();
    assert!(
        new.is_empty(),
        "unsafe code in {new:?}: move it to a listed file, or list it with the reviewers' consent"
    );
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(gone.is_empty(), "no unsafe code in {gone:?} any more: take them off the list");
}

#[test]
fn files_are_of_one_idea() {
    let long: Vec<String> = files(".rs")
        .into_iter()
        .filter(|(_, text)| text.lines().count() > MAX_LINES)
        .map(|(name, _)| name)
        .filter(|name| !LONG_FILES.iter().any(|(listed, _)| listed == name))
        .collect();
    assert!(long.is_empty(), "more than {MAX_LINES} lines: {long:?}");
}

/// The targets of a document's links that are files.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in text.split("](").skip(1) {
        let target = part.split(')').next().unwrap_or_default();
        let file = target.split('#').next().unwrap_or_default();
        if !file.is_empty() && !target.contains("://") {
            found.push(file.to_owned());
        }
    }
    found
}

#[test]
fn links_lead_somewhere() {
    let mut stale = Vec::new();
    for (name, text) in files(".md") {
        let dir = paths::workspace().join(&name).parent().expect("a directory").to_owned();
        stale.extend(
            links(&text).into_iter().filter(|l| !dir.join(l).exists()).map(|l| format!("{name}: {l}")),
        );
        // Paths in code font, from the workspace's root.
        for path in text.split('`').skip(1).step_by(2) {
            let tops = ["src/", "tests/", "sandbox/", "docs/", "seccomp-policies/", "packaging/"];
            let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-#".contains(c));
            let file = path.split('#').next().unwrap_or_default();
            if plain
                && tops.iter().any(|top| path.starts_with(top))
                && !paths::workspace().join(file).exists()
            {
                stale.push(format!("{name}: `{path}`"));
            }
        }
    }
    assert!(stale.is_empty(), "{stale:#?}");
}

/// Options in our documents that other programs have.
const FOREIGN_OPTIONS: &[&str] = &[
    "--bin",
    "--daemon",
    "--delay-us",
    "--dir",
    "--fs",
    "--help",
    "--json",
    "--live",
    "--locked",
    "--memory",
    "--million",
    "--millis",
    "--no-native",
    "--nocapture",
    "--now",
    "--priority",
    "--quick",
    "--release",
    "--rounds",
    "--save",
    "--test",
    "--unix-socket",
    "--wait",
];

#[test]
fn options_in_documents_exist() {
    let help = Command::new(Implementation::Ours.binary()).arg("--help").output().expect("--help");
    let help = String::from_utf8(help.stdout).expect("text");
    let options = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        words.filter(|w| w.starts_with("--") && w.len() > 3 && !w.ends_with('-')).map(str::to_owned).collect()
    };
    let known = options(&help);
    assert!(known.contains("--shared-dir") && known.contains("--seccomp"), "no help: {help}");
    for (name, text) in
        files(".md").into_iter().filter(|(name, _)| name == "README.md" || name.starts_with("docs/"))
    {
        let unknown: Vec<_> = options(&text)
            .into_iter()
            .filter(|option| !known.contains(option) && !FOREIGN_OPTIONS.contains(&option.as_str()))
            .collect();
        assert!(unknown.is_empty(), "{name} names options that are none of ours: {unknown:?}");
    }
}

/// The names of the dependencies in one section of a manifest.
fn dependencies(manifest: &str, sections: &[&str]) -> BTreeSet<String> {
    let text = fs::read_to_string(paths::workspace().join(manifest)).expect("a manifest");
    let mut found = BTreeSet::new();
    let mut wanted = false;
    for line in text.lines() {
        if line.starts_with('[') {
            wanted = sections.contains(&line.trim());
        } else if let Some((key, _)) =
            line.split_once('=').filter(|(_, value)| wanted && !value.contains("path ="))
        {
            found.insert(key.trim().trim_end_matches(".workspace").to_owned());
        }
    }
    found
}

#[test]
fn each_dependency_has_its_reason() {
    let all = ["[workspace.dependencies]", "[dependencies]", "[build-dependencies]", "[dev-dependencies]"];
    let manifests = ["Cargo.toml", "sandbox/Cargo.toml", "tests/Cargo.toml"];
    let mut used: BTreeSet<String> =
        manifests.iter().flat_map(|manifest| dependencies(manifest, &all)).collect();
    used.extend(dependencies("tests/fuzz/Cargo.toml", &["[dependencies]"]));
    let text = fs::read_to_string(paths::workspace().join("docs/dependencies.md")).expect("the document");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let listed: BTreeSet<String> = rows.map(str::to_owned).collect();
    assert_eq!(used, listed, "Cargo.toml (left) and docs/dependencies.md (right) differ");
}

/// `path.rs#name` in the threat model is a test that exists.
#[test]
fn the_threat_model_names_tests_that_exist() {
    let text = fs::read_to_string(paths::workspace().join("docs/threat-model.md")).expect("the document");
    let mut named = 0;
    for reference in text.split('`').skip(1).step_by(2).filter(|code| code.contains(".rs#")) {
        let (file, test) = reference.split_once('#').expect("just seen");
        let source =
            fs::read_to_string(paths::workspace().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(source.contains(&format!("fn {test}(")), "{file} has no test {test}");
        named += 1;
    }
    assert!(named >= 20, "only {named} tests are named");
    for line in text.lines().filter(|line| line.starts_with("| CVE") || line.starts_with("| GHSA")) {
        assert!(line.contains(".rs#"), "no test for {line}");
    }
}
