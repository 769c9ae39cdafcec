//! The single files of the packages, each checked by the program that reads it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tests::paths;
use tests::program::program;
use tests::share::TempDir;

use crate::build::unpacked;

/// The highest exposure that `systemd-analyze security` may find, in tenths.
const EXPOSURE: &str = "20";

fn installed(path: &str) -> PathBuf {
    unpacked().join(path)
}

fn daemon(argument: &str) -> String {
    program(installed("usr/libexec/virtiofsd"), "virtiofsd-privsep").args([argument]).succeed()
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(installed(path)).unwrap()).unwrap()
}

/// The long options that the daemon's help has, without dashes.
pub fn options() -> BTreeSet<String> {
    let command = virtiofsd::config::cli::command();
    command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned).collect()
}

#[test]
fn the_unit_is_as_strict_as_promised() {
    let unit = installed("usr/lib/systemd/system/virtiofsd@.service");
    let arguments = ["security", "--offline=yes", "--no-pager", "--threshold", EXPOSURE];
    program("systemd-analyze", "systemd").args(arguments).args([unit.as_os_str()]).succeed();
}

#[test]
fn management_layers_are_told_what_the_daemon_says_of_itself() {
    let file = json("usr/share/qemu/vhost-user/50-virtiofsd.json");
    let own: Value = serde_json::from_str(&daemon("--print-capabilities")).unwrap();
    assert_eq!(file["type"], "fs");
    assert_eq!((&file["type"], &file["features"]), (&own["type"], &own["features"]));
    assert_eq!(file["binary"], "/usr/libexec/virtiofsd");
    assert!(file["description"].as_str().is_some_and(|text| !text.is_empty()));
}

#[test]
fn manuals_have_no_fault_and_every_option() {
    for (path, format) in [("man1/virtiofsd.1.gz", "--"), ("man5/virtiofsd.toml.5.gz", "")] {
        let text = installed("usr/share/man").join(path);
        let script = "zcat \"$0\" | mandoc -T lint -W warning";
        program("sh", "mandoc").args(["-c", script]).args([text.as_os_str()]).succeed();
        let script = "zcat \"$0\" | mandoc -T ascii | col -b";
        let shown = program("sh", "mandoc").args(["-c", script]).args([text.as_os_str()]).succeed();
        let mut words: BTreeSet<&str> = shown.split([' ', '\n', ',', '=', '[', ']']).collect();
        words.extend(shown.split_whitespace());
        for option in options() {
            let about_one_run = ["help", "version", "config", "check-config", "print-capabilities", "socket"]
                .contains(&option.as_str());
            let name = format!("{format}{option}");
            assert!(
                (about_one_run && format.is_empty()) || words.contains(name.as_str()),
                "{path} lacks {name}"
            );
        }
    }
}

#[test]
fn shells_complete_every_option() {
    for (path, shell, package) in [
        ("usr/share/bash-completion/completions/virtiofsd", "bash", "bash"),
        ("usr/share/zsh/vendor-completions/_virtiofsd", "zsh", "zsh"),
        ("usr/share/fish/vendor_completions.d/virtiofsd.fish", "fish", "fish"),
    ] {
        let path = installed(path);
        program(shell, package).args(["-n"]).args([path.as_os_str()]).succeed();
        let text = fs::read_to_string(&path).unwrap();
        for option in options() {
            let written = if shell == "fish" { format!("-l {option} ") } else { format!("--{option}") };
            assert!(text.contains(&written), "{} lacks {option}", path.display());
        }
    }
}

#[test]
fn bash_completes_values() {
    let script = "source \"$0\"; COMP_WORDS=(virtiofsd --cache ''); COMP_CWORD=2; _virtiofsd virtiofsd '' --cache; \
                  printf '%s\\n' \"${COMPREPLY[@]}\"; COMP_WORDS=(virtiofsd --sha); COMP_CWORD=1; \
                  _virtiofsd virtiofsd --sha virtiofsd; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let file = installed("usr/share/bash-completion/completions/virtiofsd");
    let arguments = ["--norc".as_ref(), "-c".as_ref(), script.as_ref(), file.as_os_str()];
    let said = program("bash", "bash").args(arguments).succeed();
    assert_eq!(said.lines().collect::<Vec<_>>(), ["auto", "always", "metadata", "never", "--shared-dir"]);
}

#[test]
fn the_bill_of_materials_is_complete() {
    let document = json("usr/share/doc/virtiofsd-privsep/virtiofsd.cdx.json");
    assert_eq!((&document["bomFormat"], &document["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    assert_eq!(document["metadata"]["component"]["name"], "virtiofsd");
    let components = document["components"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut known: BTreeSet<String> = components.iter().map(|one| text(&one["bom-ref"])).collect();
    assert_eq!(known.len(), components.len(), "references are unique");
    known.insert(text(&document["metadata"]["component"]["bom-ref"]));
    for component in components {
        assert!(!text(&component["licenses"][0]["expression"]).is_empty());
        let from_registry = component["purl"].as_str().is_some_and(|purl| purl.starts_with("pkg:cargo/"));
        assert_eq!(from_registry, component["hashes"].is_array(), "{component}");
    }
    for dependency in document["dependencies"].as_array().unwrap() {
        assert!(known.contains(&text(&dependency["ref"])));
        for on in dependency["dependsOn"].as_array().unwrap() {
            assert!(known.contains(&text(on)), "{dependency}");
        }
    }
    // What cargo itself says is linked.
    let tree =
        ["tree", "--locked", "-p", "virtiofsd", "-e", "normal,no-proc-macro", "--prefix=none", "--no-dedupe"];
    let tree = program("cargo", "cargo").args(tree).dir(paths::workspace()).succeed();
    let linked: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter(|line| !line.contains('/'))
        .map(|line| line.split_once(" v").unwrap())
        .map(|(name, version)| (name, version.trim()))
        .collect();
    let notices = program("zcat", "gzip")
        .args([installed("usr/share/doc/virtiofsd-privsep/third-party-notices.txt.gz")])
        .succeed();
    for (name, version) in &linked {
        let component = components.iter().find(|one| one["name"] == *name && one["version"] == *version);
        assert_eq!(component.unwrap()["scope"], "required", "{name}");
        assert!(notices.contains(&format!("\n  {name} {version}: ")), "{name} {version} has no notice");
    }
    let required =
        components.iter().filter(|one| one["scope"] == "required" && one["hashes"].is_array()).count();
    assert_eq!(required, linked.len());
}

#[test]
fn security_modules_take_their_policies() {
    let profile = installed("etc/apparmor.d/usr.libexec.virtiofsd");
    let arguments = ["--skip-kernel-load", "--skip-cache"];
    program("apparmor_parser", "apparmor").args(arguments).args([profile.as_os_str()]).succeed();

    let dir = TempDir::on_disk();
    let policy = installed("usr/share/doc/virtiofsd-privsep/selinux");
    for name in ["te", "fc", "if"].map(|end| format!("virtiofsd_privsep.{end}")) {
        fs::copy(policy.join(&name), dir.path().join(&name)).unwrap();
    }
    program("make", "make")
        .args(["-f", "/usr/share/selinux/devel/Makefile", "virtiofsd_privsep.pp"])
        .dir(dir.path())
        .succeed();
    assert!(fs::metadata(dir.path().join("virtiofsd_privsep.pp")).unwrap().len() > 0);
}
