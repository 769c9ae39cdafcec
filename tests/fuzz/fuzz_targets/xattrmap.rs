//! Any text is refused with a message or is a map; a map renames any name without surprise.
//!
//! Input: the name, a NUL, the map's text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virtiofsd::config::xattrmap::XattrMap;

fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|byte| *byte == 0) else { return };
    let (name, text) = (&input[..end], &input[end + 1..]);
    let Ok(text) = std::str::from_utf8(text) else { return };
    let map: XattrMap = match text.parse() {
        Ok(map) => map,
        Err(error) => {
            // The message may quote the text, at worst with every character escaped.
            assert!(error.to_string().len() < 10 * text.len() + 1000, "{error}");
            return;
        }
    };
    if let Ok(host) = map.client_to_host(name) {
        assert!(host.ends_with(name), "a rule only puts something before the name");
        assert!(map.can_produce(&host));
    }
    if let Some(client) = map.host_to_client(name) {
        assert!(name.ends_with(client), "a rule only takes something off the name");
        assert!(!client.is_empty() || name.is_empty());
    }
    if let Some(host) = map.renamed_capability() {
        assert!(map.can_produce(&host));
    }
    for rule in map.bypasses(text) {
        assert!(text.contains(rule));
    }
});
