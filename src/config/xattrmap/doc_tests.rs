//! The examples in `docs/xattr-mapping.md` do what it says.

use super::{MapError, XattrMap};

const DOCUMENT: &str = include_str!("../../../docs/xattr-mapping.md");

/// A row of a table: its two cells, without back-ticks.
fn cells(line: &str) -> Option<(&str, &str)> {
    let (left, right) = line.strip_prefix('|')?.strip_suffix('|')?.split_once('|')?;
    Some((left.trim().trim_matches('`'), right.trim().trim_matches('`')))
}

fn from_guest(map: &XattrMap, name: &str) -> String {
    match map.client_to_host(name.as_bytes()) {
        Ok(name) => String::from_utf8(name.into_owned()).unwrap(),
        Err(MapError::Eperm) => "EPERM".into(),
        Err(MapError::Enotsup) => "ENOTSUP".into(),
    }
}

fn from_host(map: &XattrMap, name: &str) -> String {
    map.host_to_client(name.as_bytes())
        .map_or("hidden".into(), |name| String::from_utf8(name.to_vec()).unwrap())
}

#[test]
fn every_row_below_an_example_holds() {
    type Direction = fn(&XattrMap, &str) -> String;
    let mut maps: Vec<XattrMap> = Vec::new();
    let mut block: Option<String> = None;
    let mut table: Option<Direction> = None;
    let mut previous_was_row = false;
    let (mut examples, mut rows) = (0, 0);
    for line in DOCUMENT.lines() {
        if let Some(mut text) = block.take() {
            if line == "```" {
                let map: XattrMap = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
                assert!(map.bypasses(&text).is_empty(), "the document recommends it: {text}");
                // Rows are about all examples since the rows before them.
                if previous_was_row {
                    maps.clear();
                    previous_was_row = false;
                }
                maps.push(map);
                examples += 1;
            } else {
                text += line;
                text.push('\n');
                block = Some(text);
            }
            continue;
        }
        match cells(line) {
            None if line == "```xattrmap" => block = Some(String::new()),
            None => table = None,
            Some(("the guest uses", "the host has")) => table = Some(from_guest),
            Some(("the host has", "the guest sees")) => table = Some(from_host),
            Some(("---", _)) => {}
            Some((name, expected)) => {
                for map in table.iter().flat_map(|_| &maps) {
                    let direction = table.unwrap();
                    assert_eq!(direction(map, name), expected, "{line}");
                    previous_was_row = true;
                    rows += 1;
                }
            }
        }
    }
    assert!(examples >= 6 && rows >= 20, "{examples} examples with {rows} rows were found");
}

/// The table of `map` rules: both columns are the same map.
#[test]
fn short_forms_and_long_forms_agree() {
    let names = ["user.a", "trusted.a", "KEYa", "PREPENDa", "PREPENDKEYa", "PREPEND"];
    let mut found = 0;
    for (short, long) in DOCUMENT.lines().filter_map(cells).filter(|(short, _)| short.starts_with(":map:")) {
        let (short, long): (XattrMap, XattrMap) = (short.parse().unwrap(), long.parse().unwrap());
        for name in names {
            assert_eq!(from_guest(&short, name), from_guest(&long, name));
            assert_eq!(from_host(&short, name), from_host(&long, name));
        }
        found += 1;
    }
    assert_eq!(found, 2);
}

/// The error that it shows is the error that there is.
#[test]
fn the_error_is_shown_as_it_is() {
    let error = ":ok:all:::\n:bad:al:security.:security.:".parse::<XattrMap>().unwrap_err().to_string();
    let indented: String = error.lines().map(|line| format!("    {line}\n")).collect();
    assert!(DOCUMENT.contains(&indented), "{indented}");
}
