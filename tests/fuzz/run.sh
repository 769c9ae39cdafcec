#!/bin/sh
# Runs fuzz targets for a bounded time, on the stable toolchain, from the saved corpus. Fails on a finding.
#
#   tests/fuzz/run.sh SECONDS [TARGET...]     each target (default: all) for SECONDS
#   tests/fuzz/run.sh --save SECONDS TARGET   also adds inputs that reach new code to the saved corpus
#
# Needs cargo and a C++ compiler (for libFuzzer). Findings are kept in tests/fuzz/artifacts/TARGET.
set -eu

usage() {
    sed -n 's/^# \{0,1\}//; 4,5p' "$0" >&2
    exit 2
}

save=no
if [ "${1:-}" = --save ]; then
    save=yes
    shift
fi
seconds=${1:-}
case $seconds in
'' | *[!0-9]*) usage ;;
esac
shift

cd "$(dirname "$0")"
if [ $# -eq 0 ]; then
    set -- $(ls fuzz_targets | sed -n 's/\.rs$//p')
fi

# The coverage that libFuzzer reads, from stable rustc options (cargo-fuzz passes the same). With --target,
# they don't reach build scripts and procedural macros.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
export RUSTFLAGS
unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
for target; do
    cargo build --release --locked --target "$host" --bin "$target"
done

found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
built=${CARGO_TARGET_DIR:-target}/$host/release
for target; do
    mkdir -p "artifacts/$target" "corpus/$target" "$found/$target"
    echo "fuzz: $target for $seconds s from $(ls "corpus/$target" | wc -l) saved inputs"
    # The first directory takes new inputs; the saved corpus is only read.
    if ! "$built/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=4096 \
        -print_final_stats=1 -verbosity=0 -artifact_prefix="artifacts/$target/" \
        "$found/$target" "corpus/$target" >"$found/log" 2>&1; then
        cat "$found/log"
        echo "fuzz: $target has a finding; its input is in tests/fuzz/artifacts/$target" >&2
        exit 1
    fi
    sed -n 's/^stat::number_of_executed_units: */fuzz: executions: /p' "$found/log"
    if [ $save = yes ]; then
        "$built/$target" -use_counters=0 -set_cover_merge=1 -verbosity=0 "corpus/$target" "$found/$target" >"$found/log" 2>&1
        echo "fuzz: saved corpus of $target: $(ls "corpus/$target" | wc -l) inputs"
    fi
done
echo "fuzz: no finding"
