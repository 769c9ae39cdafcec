#!/bin/sh
# Fetches what a guest boot needs, once, from the Debian archive that this machine is configured for:
# QEMU with all its libraries and firmware, two kernels, and a static busybox.
#
#   tests/guest/fetch.sh          prints the directory that holds them
#
# The machine itself is not changed, and root is not needed: apt runs with its own configuration, source
# list and state below the cache, apt verifies signatures and hashes as always, and `dpkg -x` unpacks into
# the cache. QEMU is taken with its whole dependency closure, the C library included, and is started through
# that closure's own dynamic linker; so it is the same QEMU whichever Debian release this machine runs.
#
# Environment:
#   VIRTIOFSD_TEST_CACHE   where to put it (default: target/cache of this source tree)
#   VIRTIOFSD_TEST_MIRROR  base address of a Debian archive, if apt on this machine is not set up for one
#
# Result, below $VIRTIOFSD_TEST_CACHE/guest-$layout:
#   qemu-system-x86_64     starts QEMU
#   tool NAME ARGS…        runs another program of the closure
#   root/                  the unpacked closure
#   kernel/SERIES/vmlinux  ELF kernels with a PVH entry, so that QEMU need not run a decompressor in TCG
#   kernel/SERIES/modules/ the modules a guest may load; `order` lists those it must, first one first
#   versions               package and version of each thing fetched
set -eu
umask 022

# Changes whenever the contents below the result directory change, so that an old cache is not taken for new.
layout=1
# The release that QEMU and the newer kernel come from, and the one with the older kernel.
new_suite=trixie
old_suite=bookworm
tools="qemu-system-x86 busybox-static attr zstd lz4 xz-utils"
# What a 6.1 cloud kernel has as modules and a 6.12 one has built in, in loading order.
boot_modules="virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_console fuse virtiofs"
other_modules="overlay"

top=$(cd "$(dirname "$0")/../.." && pwd)
cache=${VIRTIOFSD_TEST_CACHE:-$top/target/cache}

say() { printf 'fetch: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

need() {
    command -v "$1" >/dev/null || die "this machine has no '$1'; on Debian, install it with: apt-get install $2"
}

# Prints the base address of each Debian archive in this machine's apt configuration, whatever its format.
configured_mirrors() {
    if [ -n "${VIRTIOFSD_TEST_MIRROR:-}" ]; then
        printf '%s\n' "${VIRTIOFSD_TEST_MIRROR%/}"
        return
    fi
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release | tr -d '"')
    indexes=$(env -u APT_CONFIG apt-get update --print-uris 2>/dev/null) || true
    for suite in "${codename:-stable}" stable oldstable testing sid "$new_suite" "$old_suite"; do
        printf '%s\n' "$indexes" | sed -n "s|^'\(.*\)/dists/$suite/InRelease'.*|\1|p"
    done | awk '!seen[$0]++'
}

# Writes an apt configuration that shares nothing with the machine's but how to reach the network.
configure_apt() {
    mkdir -p apt/none apt/lists/partial apt/archives/partial apt/state
    : >apt/status
    env -u APT_CONFIG apt-config dump | grep -E '^Acquire::(http|https|ftp|Proxy|Check|Max|ForceIPv)' >apt/conf || true
    cat >>apt/conf <<-END
	Dir::Etc::main "/dev/null";
	Dir::Etc::parts "$PWD/apt/none/";
	Dir::Etc::sourcelist "$PWD/apt/sources.list";
	Dir::Etc::sourceparts "$PWD/apt/none/";
	Dir::Etc::preferences "/dev/null";
	Dir::Etc::preferencesparts "$PWD/apt/none/";
	Dir::State "$PWD/apt/state";
	Dir::State::lists "$PWD/apt/lists";
	Dir::State::status "$PWD/apt/status";
	Dir::Cache "$PWD/apt";
	Dir::Cache::archives "$PWD/apt/archives";
	APT::Architecture "amd64";
	APT::Architectures { "amd64"; };
	APT::Default-Release "$new_suite";
	APT::Install-Recommends "false";
	APT::Sandbox::User "";
	APT::Update::Error-Mode "any";
	Acquire::Languages "none";
	Acquire::Retries "3";
	Acquire::http::Timeout "30";
	Acquire::https::Timeout "30";
	END
    APT_CONFIG=$PWD/apt/conf
    export APT_CONFIG
}

# Loads the package lists of both suites from the first configured mirror that has them.
update_lists() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r "$keyring" ] || die "$keyring is missing, so packages cannot be verified; install debian-archive-keyring"
    mirrors=$(configured_mirrors)
    [ -n "$mirrors" ] || die "apt is not configured for a Debian archive here; set VIRTIOFSD_TEST_MIRROR to the" \
        "base address of one"
    for mirror in $mirrors; do
        for suite in "$new_suite" "$old_suite"; do
            printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite"
        done >apt/sources.list
        if apt-get -qq update >apt/log 2>&1; then
            say "taking packages from $mirror"
            return
        fi
        sed 's/^/fetch: apt: /' apt/log >&2
    done
    die "no configured mirror gave the package lists of $new_suite and $old_suite (apt's messages are above)"
}

run_apt() {
    "$@" >apt/log 2>&1 || { sed 's/^/fetch: apt: /' apt/log >&2; die "'$*' failed (apt's messages are above)"; }
}

# The closure of $tools: apt is told that nothing is installed, so it fetches every dependency.
fetch_closure() {
    say "fetching QEMU and its libraries"
    # shellcheck disable=SC2086 # a list of words
    run_apt apt-get -qq -y --download-only install $tools
    mkdir root
    for deb in apt/archives/*.deb; do
        dpkg -x "$deb" root || die "cannot unpack $deb"
        dpkg-deb -W --showformat='${Package} ${Version}\n' "$deb" >>versions
    done
    rm -rf root/usr/share/doc root/usr/share/man root/usr/share/locale root/var
    # Merged /usr is a matter of these links, which base-files would make.
    for dir in bin lib lib64; do [ -e "root/$dir" ] || ln -s "usr/$dir" "root/$dir"; done

    cat >tool <<-'END'
	#!/bin/sh
	# Runs a program of the closure with the closure's own linker and libraries.
	here=$(dirname "$(readlink -f "$0")")
	name=$1
	shift
	exec "$here/root/lib64/ld-linux-x86-64.so.2" --inhibit-cache \
	    --library-path "$here/root/usr/lib/x86_64-linux-gnu" "$here/root/usr/bin/$name" "$@"
	END
    cat >qemu-system-x86_64 <<-'END'
	#!/bin/sh
	here=$(dirname "$(readlink -f "$0")")
	exec "$here/tool" qemu-system-x86_64 -L "$here/root/usr/share/qemu" -L "$here/root/usr/share/seabios" "$@"
	END
    chmod 755 tool qemu-system-x86_64
}

# The little-endian number of $3 bytes at offset $2 of file $1.
number() { od -An -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# Unpacks the ELF kernel from a bzImage: the boot protocol's header says where the compressed payload lies.
extract_vmlinux() {
    image=$1
    [ "$(number "$image" 514 4)" = 1400005704 ] || die "$image is not a Linux bzImage (no HdrS magic)"
    setup_sectors=$(number "$image" 497 1)
    offset=$(((setup_sectors + 1) * 512 + $(number "$image" 584 4)))
    length=$(number "$image" 588 4)
    magic=$(tail -c +$((offset + 1)) "$image" | od -An -tx1 -N 4 | tr -d ' ')
    # The last four bytes of the payload are its unpacked size, which is no part of these formats.
    tail -c +$((offset + 1)) "$image" | head -c $((length - 4)) | case $magic in
        28b52ffd) ./tool zstd -dc ;;
        02214c18) ./tool lz4 -dc ;;
        fd377a58) ./tool xz -dc ;;
        *) die "$image is compressed in a way that is not known here (magic $magic)" ;;
    esac >"$2" || die "cannot unpack the kernel in $image"
    [ "$(od -An -tx1 -N 4 "$2" | tr -d ' ')" = 7f454c46 ] || die "what $image unpacks to is not an ELF kernel"
    [ "$(wc -c <"$2")" = "$(number "$image" $((offset + length - 4)) 4)" ] || die "$image unpacked to a wrong size"
}

# fetch_kernel SUITE SERIES
fetch_kernel() {
    say "fetching the $2 kernel of $1"
    package=$(apt-cache show "linux-image-cloud-amd64/$1" | sed -n 's/^Depends: \([^ ,]*\).*/\1/p')
    case $package in
        "linux-image-$2."*) ;;
        *) die "linux-image-cloud-amd64 of $1 depends on '$package', which is not a $2 kernel" ;;
    esac
    mkdir -p "unpacked" "kernel/$2/modules"
    (cd unpacked && quietly apt-get -qq download "$package/$1") ||
        { sed 's/^/fetch: apt: /' apt/log >&2; die "cannot fetch $package"; }
    dpkg-deb -W --showformat='${Package} ${Version}\n' unpacked/*.deb >>versions
    dpkg -x unpacked/*.deb unpacked/tree || die "cannot unpack $package"
    extract_vmlinux unpacked/tree/boot/vmlinuz-* "kernel/$2/vmlinux"
    : >"kernel/$2/modules/order"
    for module in $boot_modules $other_modules; do
        found=$(find unpacked/tree -name "$module.ko" -o -name "$module.ko.xz")
        case $found in
            '') continue ;;
            *.xz) ./tool xz -dc "$found" >"kernel/$2/modules/$module.ko" ;;
            *) cp "$found" "kernel/$2/modules/$module.ko" ;;
        esac
        case " $other_modules " in *" $module "*) ;; *) printf '%s.ko\n' "$module" >>"kernel/$2/modules/order" ;; esac
    done
    rm -rf unpacked
}

quietly() { "$@" >../apt/log 2>&1; }

# Does what was unpacked run here and offer what the tests need?
check() {
    ./qemu-system-x86_64 -device help >apt/log 2>&1 || { cat apt/log >&2; die "the fetched QEMU does not start here"; }
    grep -q vhost-user-fs-pci apt/log || die "the fetched QEMU has no vhost-user-fs-pci device"
    root/usr/bin/busybox true || die "the fetched busybox does not run here"
}

out=$cache/guest-$layout
if [ -d "$out" ]; then
    printf '%s\n' "$out"
    exit 0
fi

need apt-get apt
need dpkg-deb dpkg
need flock util-linux
need od coreutils
[ "$(uname -m)" = x86_64 ] || die "guest boots need an x86_64 machine; this is $(uname -m)"
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
out=$cache/guest-$layout

# One fetch at a time; who waited finds the result there.
exec 9>"$cache/guest.lock"
flock 9
if [ ! -d "$out" ]; then
    rm -rf "$cache"/guest-fetch.* # of a fetch that was killed
    work=$(mktemp -d "$cache/guest-fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' HUP INT TERM
    chmod 755 "$work"
    cd "$work"
    configure_apt
    update_lists
    fetch_closure
    fetch_kernel "$new_suite" 6.12
    fetch_kernel "$old_suite" 6.1
    check
    rm -rf apt
    cd "$cache"
    mv -T "$work" "$out"
    say "done: $(du -sh "$out" | cut -f1) in $out"
fi
printf '%s\n' "$out"
