//! Chooses the role (broker or worker) and is the only place where the process ends.

fn main() {}
