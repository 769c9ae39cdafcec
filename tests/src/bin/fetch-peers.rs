//! Fetches the daemons that ours is compared with into the cache; those that are there stay.
//!
//! `fetch-peers [1.13.3|1.14.0|c]...`, all without arguments.

use std::process::ExitCode;

use tests::peers::{self, Implementation, PEERS};

fn main() -> ExitCode {
    let wanted: Result<Vec<Implementation>, String> =
        std::env::args().skip(1).map(|arg| arg.parse()).collect();
    let wanted = match wanted {
        Ok(list) if list.is_empty() => PEERS.to_vec(),
        Ok(list) if list.iter().all(|peer| PEERS.contains(peer)) => list,
        Ok(_) => return failure("only peers can be fetched: 1.13.3, 1.14.0, c"),
        Err(e) => return failure(&e),
    };
    for peer in wanted {
        match peers::fetch(&peer) {
            Ok(path) => println!("{}: {}", peer.name(), path.display()),
            Err(e) => return failure(&format!("cannot fetch {}: {e}", peer.name())),
        }
    }
    ExitCode::SUCCESS
}

fn failure(message: &str) -> ExitCode {
    eprintln!("fetch-peers: {message}");
    ExitCode::FAILURE
}
