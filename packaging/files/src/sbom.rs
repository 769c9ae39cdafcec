//! The software bill of materials, in CycloneDX 1.5 (JSON).
//!
//! No serial number and no time but that of the source: two builds of one commit give the same bytes.

use serde_json::{Value, json};
use thiserror::Error;

use crate::graph::{Graph, Package, PackageId};

/// Why it could not be written.
#[derive(Debug, Error)]
pub enum SbomError {
    /// The date is not representable.
    #[error("{0} seconds after 1970 is not a date of this era")]
    Date(u64),
    /// serde_json failed.
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The document; `date` in seconds since 1970.
///
/// # Errors
/// When `date` is beyond the year 9999.
pub fn document(graph: &Graph, date: u64) -> Result<String, SbomError> {
    let own = |package: &Package| package.own;
    let mut components: Vec<Value> = graph
        .packages
        .iter()
        .filter(|(id, _)| **id != graph.root)
        .map(|(id, package)| component(id, package, "library"))
        .collect();
    components.push(standard_library(&graph.rust));
    let mut dependencies: Vec<Value> = graph
        .packages
        .iter()
        .map(|(id, package)| {
            let mut on: Vec<String> =
                package.dependencies.iter().map(|id| reference(id, own(&graph.packages[id]))).collect();
            if *id == graph.root {
                on.push(standard_library_reference(&graph.rust));
            }
            json!({ "ref": reference(id, package.own), "dependsOn": on })
        })
        .collect();
    dependencies.push(json!({ "ref": standard_library_reference(&graph.rust), "dependsOn": [] }));
    let root = &graph.packages[&graph.root];
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": timestamp(date).ok_or(SbomError::Date(date))?,
            "component": component(&graph.root, root, "application"),
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// A package URL for what a registry has; a plain name for what is only here.
fn reference(id: &PackageId, own: bool) -> String {
    let PackageId { name, version } = id;
    if own { format!("{name}@{version}") } else { format!("pkg:cargo/{name}@{version}") }
}

fn component(id: &PackageId, package: &Package, kind: &str) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": reference(id, package.own),
        "name": id.name,
        "version": id.version,
        "description": package.description,
        "scope": if package.linked { "required" } else { "excluded" },
        "licenses": [{ "expression": expression(&package.license) }],
    });
    if !package.own {
        component["purl"] = json!(reference(id, false));
    }
    if let Some(sha256) = &package.sha256 {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sha256 }]);
    }
    if let Some(repository) = &package.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

/// Old manifests write `MIT/Apache-2.0`, which is no SPDX expression.
pub fn expression(license: &str) -> String {
    license.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")
}

fn standard_library_reference(rust: &str) -> String {
    format!("pkg:generic/rust-std@{rust}")
}

fn standard_library(rust: &str) -> Value {
    json!({
        "type": "library",
        "bom-ref": standard_library_reference(rust),
        "name": "rust-std",
        "version": rust,
        "description": "The Rust standard library, as the compiler's distribution has it",
        "scope": "required",
        "licenses": [{ "expression": "MIT OR Apache-2.0" }],
        "purl": standard_library_reference(rust),
    })
}

/// ISO 8601 in UTC. Days to a date of the Gregorian calendar: eras of 400 years that begin in March, so that the
/// leap day is the last of its year.
fn timestamp(seconds: u64) -> Option<String> {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let days = days.checked_add(719_468)?;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    (year <= 9999).then(|| format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps() {
        let text = |seconds| timestamp(seconds).unwrap();
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(text(951_868_799), "2000-02-29T23:59:59Z");
        assert_eq!(text(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(text(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(text(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(timestamp(u64::MAX), None);
    }

    #[test]
    fn expressions() {
        assert_eq!(expression("MIT/Apache-2.0"), "MIT OR Apache-2.0");
        assert_eq!(expression("Apache-2.0 AND BSD-3-Clause"), "Apache-2.0 AND BSD-3-Clause");
    }
}
