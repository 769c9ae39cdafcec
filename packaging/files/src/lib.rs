//! Makes the files of the packages that follow from the code, so that they cannot fall behind it: shell
//! completions from the table of options, the software bill of materials and the licence notices from the
//! dependency graph.
//!
//! It runs when a package is built. It needs no network: cargo has the sources of all crates by then.

pub mod completions;
pub mod graph;
pub mod notices;
pub mod sbom;
