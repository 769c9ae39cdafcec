#!/usr/bin/env bash
# Runs every check of the project, after setting up what the checks need. On a fresh Debian 12 or later with
# cargo, as root:
#
#   tests/run.sh
#
# What it changes on the machine: it installs the Debian packages below. All else (upstream daemons, QEMU, guest
# kernels) goes to target/cache. It fails when anything can't be set up or run: nothing is skipped.
#
#   FUZZ_SECONDS   how long each fuzz target runs (default 60)
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(
    git tar diffutils curl strace            # what the suites run through the bridge, and look with
    sqlite3 fio stress-ng python3            # databases, data verification and stress through the bridge
    python3-prometheus-client                # the parser that metrics are read with
    e2fsprogs btrfs-progs util-linux mount   # file systems of the tests' own, and other users
    uidmap                                   # newuidmap: id maps of an ordinary user
    libcap-ng-dev libseccomp-dev             # to build upstream virtiofsd
    libglib2.0-0 libnuma1                    # to run the C virtiofsd
    g++                                      # the fuzzing runtime
    zstd lz4 xz-utils cpio                   # guest kernels
    debhelper dh-apparmor lintian            # the Debian package, and what checks it
    rpm rpm2cpio rpmlint                     # the same for the RPM package
    apparmor selinux-policy-dev make         # what reads the files in the packages: security policies,
    bash zsh fish mandoc bsdextrautils       # completions, manuals,
    systemd                                  # units
    mmdebstrap                               # a clean Debian system to install the package on
)

say() { printf '\n== %s\n' "$*"; }

say "Debian packages"
[ "$(id -u)" = 0 ] || { echo "tests/run.sh: run it as root: namespaces, mounts and /dev/fuse need it" >&2; exit 1; }
missing=()
for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

say "rustfmt"
cargo fmt --check

say "clippy"
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings

say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps --document-private-items

say "the daemons that ours is compared with"
cargo run --quiet --locked -p tests --bin fetch-peers

say "QEMU and guest kernels"
VIRTIOFSD_TEST_CACHE="${VIRTIOFSD_TEST_CACHE:-$PWD/target/cache}" tests/guest/fetch.sh

say "tests"
cargo test --locked --workspace --no-fail-fast

say "packages: built twice, checked, installed on a clean system with systemd"
cargo test --locked -p tests --test packaging

say "fuzzing"
tests/fuzz/run.sh "${FUZZ_SECONDS:-60}" decode chain
tests/fuzz/run.sh "$((${FUZZ_SECONDS:-60} / 3))" broker_request migration_stream mounts vhost_user xattrmap

say "all checks passed"
