//! The answer to `--print-capabilities`.
//!
//! A management layer asks before it builds a command line; the form is that of QEMU's
//! `docs/interop/vhost-user.json`.

/// What a management layer may rely on, as virtiofsd 1.14.0 names it.
pub(super) const FEATURES: &[&str] =
    &["migrate-precopy", "posix-acl-negotiation-mode", "security-label-negotiation-mode", "separate-options"];

/// The JSON document, with a newline at its end.
pub(super) fn document() -> String {
    let features: Vec<String> = FEATURES.iter().map(|name| format!("    \"{name}\"")).collect();
    format!("{{\n  \"type\": \"fs\",\n  \"features\": [\n{}\n  ]\n}}\n", features.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_upstreams() {
        let expected = r#"{
  "type": "fs",
  "features": [
    "migrate-precopy",
    "posix-acl-negotiation-mode",
    "security-label-negotiation-mode",
    "separate-options"
  ]
}
"#;
        assert_eq!(document(), expected);
    }
}
