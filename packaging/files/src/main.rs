//! `package-files DIRECTORY` writes the files that the package build installs.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use package_files::graph::Graph;
use package_files::{completions, notices, sbom};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("package-files: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        return Err("usage: package-files DIRECTORY (it is created)".into());
    };
    let date = std::env::var("SOURCE_DATE_EPOCH")
        .map_err(|_| "SOURCE_DATE_EPOCH is not set: the package build sets it to the time of the commit")?
        .parse()
        .map_err(|e| format!("SOURCE_DATE_EPOCH is no number of seconds: {e}"))?;
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let graph = Graph::of_daemon(&top)?;

    fs::create_dir_all(&directory)?;
    for (name, contents) in completions::all() {
        fs::write(directory.join(name), contents)?;
    }
    fs::write(directory.join("virtiofsd.cdx.json"), sbom::document(&graph, date)?)?;
    fs::write(directory.join("third-party-notices.txt"), notices::document(&graph, &top)?)?;
    Ok(())
}
