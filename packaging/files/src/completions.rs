//! Shell completions of the daemon's command line.

use clap_complete::{Shell, generate};

/// The name that each shell looks for, in the directory where distributions keep them.
const SHELLS: [(Shell, &str); 3] =
    [(Shell::Bash, "virtiofsd.bash"), (Shell::Zsh, "_virtiofsd"), (Shell::Fish, "virtiofsd.fish")];

/// File name and contents for each shell.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    SHELLS
        .into_iter()
        .map(|(shell, name)| {
            let mut contents = Vec::new();
            generate(shell, &mut virtiofsd::config::cli::command(), "virtiofsd", &mut contents);
            (name, contents)
        })
        .collect()
}
