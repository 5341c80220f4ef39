#!/bin/sh
# Builds a small Linux guest from Debian packages: kernel, initramfs and root disk, good for Cloud
# Hypervisor and for QEMU alike.
#
#   deploy/guest/build-image.sh [--agent PATH] [--size MIB] OUT_DIR
#
# OUT_DIR gets vmlinuz (drover-kernel), initramfs.cpio.gz (drover-initramfs), rootfs.raw
# (drover-rootfs) and manifest.json. The initramfs alone is a whole system in memory; with
# root=/dev/vda on the kernel's command line it hands over to the root disk.
#
# Packages are fetched by name and unpacked in a cache (DROVER_CACHE, else
# $XDG_CACHE_HOME/drover, else ~/.cache/drover); nothing of them is installed here. Missing tools are
# installed by apt, as root only. Same inputs, same bytes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
say() { echo "build-image: $*" >&2; }
die() { say "$*"; exit 1; }
usage() { sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

agent='' size=64 out=''
while [ $# -gt 0 ]; do
    case $1 in
        --agent) agent=${2:?--agent needs a path}; shift 2 ;;
        --size) size=${2:?--size needs a number of MiB}; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        -*) die "unknown option $1; see --help" ;;
        *) out=$1; shift ;;
    esac
done
[ -n "$out" ] || { usage >&2; exit 64; }
command -v apt-get > /dev/null || die "needs apt-get: run it on Debian or Ubuntu, or in such a container"
arch=$(dpkg --print-architecture)
[ "$arch" = amd64 ] || die "only amd64 guests are built yet, this machine is $arch"

umask 022
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1700000000}" LC_ALL=C TZ=UTC
cache=${DROVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drover}/guest
mkdir -p "$cache" "$out"
out=$(cd "$out" && pwd)
PATH=$PATH:/usr/sbin:/sbin

# --- tools ---------------------------------------------------------------------------------------
missing=
for pair in cpio:cpio gzip:gzip mke2fs:e2fsprogs depmod:kmod strip:binutils dpkg-deb:dpkg; do
    command -v "${pair%%:*}" > /dev/null || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || die "missing tools: run as root: apt-get install$missing"
    say "installing$missing"
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing > /dev/null
fi

# --- packages: the newest of each name, unpacked once ----------------------------------------------
# Asking apt takes a second or more, so its answer is kept for as long as its lists stay the same.
lists=$(stat -c %Y /var/lib/apt/lists 2> /dev/null || echo none)
resolved=$cache/resolved
resolve() {
    image=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$image" ] || return 1
    echo "lists $lists" > "$resolved.tmp"
    # NAME VERSION, one line each.
    apt-cache policy "$image" busybox-static |
        awk '/^[a-z]/ { name = $1; sub(":$", "", name) } /Candidate:/ && $2 != "(none)" { print name, $2 }' >> "$resolved.tmp"
    [ "$(wc -l < "$resolved.tmp")" = 3 ] && mv "$resolved.tmp" "$resolved"
}
if ! grep -qsx "lists $lists" "$resolved" && ! resolve; then
    [ "$(id -u)" = 0 ] || die "apt knows no linux-image-cloud-amd64: run apt-get update as root"
    say "fetching the lists of packages"
    apt-get update > /dev/null
    lists=$(stat -c %Y /var/lib/apt/lists)
    resolve || die "apt offers no linux-image-cloud-amd64 or busybox-static; check its sources"
fi
# unpacked NAME: prints the folder with the package's files.
unpacked() {
    version=$(sed -n "s/^$1 //p" "$resolved")
    dir=$cache/$1_$(echo "$version" | tr ':/' '__')
    if [ ! -d "$dir" ]; then
        say "fetching $1 $version"
        rm -rf "$dir.tmp"
        mkdir -p "$dir.tmp/deb" "$dir.tmp/root"
        (cd "$dir.tmp/deb" && apt-get -o APT::Sandbox::User=root download "$1=$version" > /dev/null)
        dpkg-deb -x "$dir.tmp"/deb/*.deb "$dir.tmp/root"
        rm -rf "$dir.tmp/deb"
        mv "$dir.tmp" "$dir"
    fi
    echo "$dir/root"
}
# The metapackage names the real one.
image=$(sed -n 's/^\(linux-image-[^ ]*\) .*/\1/p' "$resolved")
kernel=$(unpacked "$image")
busybox=$(unpacked busybox-static)/bin/busybox
release=${image#linux-image-}

# --- the agent -------------------------------------------------------------------------------------
if [ -z "$agent" ]; then
    say "building the agent"
    agent=$("$here/../build-static.sh" drover-agent:drover-agent)
fi
[ -x "$agent" ] || die "$agent is not a program; build it with deploy/build-static.sh"
if readelf -l "$agent" | grep -q INTERP; then
    die "$agent is linked dynamically; build it with deploy/build-static.sh"
fi

# --- nothing to do? ----------------------------------------------------------------------------------
stamp=$( (echo "$size $image $kernel $busybox $SOURCE_DATE_EPOCH"
    sha256sum "$agent" "$0" | cut -d' ' -f1
    cd "$here/tree" && find . -type f | sort | xargs sha256sum) | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/.stamp" 2> /dev/null)" = "$stamp" ] && [ -s "$out/manifest.json" ]; then
    say "$out is up to date"
    exit 0
fi

# --- modules, with what they need, in the order of loading -------------------------------------------
# boot: before the agent. late: after it. spare: there for modprobe, not loaded.
boot='virtio_pci virtio_blk virtio_net vmw_vsock_virtio_transport'
late='button evdev pvpanic-pci virtio-rng virtio_balloon virtio_mem'
# The last ones are what a disk with a seed, or one from another system, is read by.
spare='overlay virtiofs vfat nls_ascii nls_cp437 nls_utf8 isofs'
modules=$kernel/lib/modules/$release
[ -s "$modules/modules.dep" ] || depmod -b "$kernel" "$release"
# needed NAME...: paths below lib/modules, each once, dependencies first.
needed() {
    for module in "$@"; do
        modprobe -d "$kernel" -S "$release" --show-depends "$module" | sed -n 's/^insmod //p'
    done | sed "s|.*/lib/modules/||; s| *$||" | awk '!seen[$0]++'
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
mkdir -p "$tree/bin" "$tree/lib/modules"
for dir in sbin usr/bin usr/sbin usr/local/bin etc dev proc sys run tmp root home/user mnt var/log; do
    mkdir -p "$tree/$dir"
done
ln -s ../run "$tree/var/run"
chmod 1777 "$tree/tmp"
chmod 0700 "$tree/root"
cp -R "$here/tree/." "$tree/"
cp "$busybox" "$tree/bin/busybox"
strip -o "$tree/sbin/drover-agent" "$agent"
chmod 0755 "$tree/bin/busybox" "$tree/sbin/drover-agent"
"$busybox" --list-full | while read -r applet; do
    [ "$applet" = bin/busybox ] || [ -e "$tree/$applet" ] || {
        mkdir -p "$tree/${applet%/*}"
        ln -s /bin/busybox "$tree/$applet"
    }
done

needed $boot > "$tree/lib/modules/order.boot"
needed $late | grep -vxF -f "$tree/lib/modules/order.boot" > "$tree/lib/modules/order.late"
{ cat "$tree/lib/modules/order.boot" "$tree/lib/modules/order.late"; needed $spare; } | sort -u |
    (cd "$kernel/lib/modules" && cpio --quiet -pdm "$tree/lib/modules")
for file in modules.builtin modules.builtin.modinfo modules.order; do
    [ ! -e "$modules/$file" ] || cp "$modules/$file" "$tree/lib/modules/$release/"
done
depmod -b "$tree" "$release" 2> "$work/depmod.log" || die "depmod: $(cat "$work/depmod.log")"
find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# --- images --------------------------------------------------------------------------------------------
# Written beside and renamed, so that a reader never sees half of one.
cp "$kernel/boot/vmlinuz-$release" "$out/.vmlinuz"
(cd "$tree" && find . -print | sort | cpio --quiet -o -H newc -R 0:0 --reproducible) | gzip -n -9 > "$out/.initramfs"
rootfs=$out/.rootfs
rm -f "$rootfs"
truncate -s "${size}M" "$rootfs"
# A fixed identity and hash seed: the same files make the same disk.
id=$(echo "$stamp" | sed 's/^\(.\{8\}\)\(.\{4\}\)\(.\{3\}\)\(.\{3\}\)\(.\{12\}\).*/\1-\2-4\3-8\4-\5/')
make_fs() { "$@" mke2fs -q -F -t ext4 -L drover-root -U "$id" -E "hash_seed=$id,root_owner=0:0" -m 1 -d "$tree" "$rootfs"; }
if [ "$(id -u)" = 0 ]; then make_fs; else make_fs unshare -r; fi
mv "$out/.vmlinuz" "$out/vmlinuz"
mv "$out/.initramfs" "$out/initramfs.cpio.gz"
mv "$rootfs" "$out/rootfs.raw"

entry() {
    printf '    {"name": "%s", "kind": "%s", "file": "%s", "sha256": "%s", "size": %s}' "$1" "$2" "$3" \
        "$(sha256sum "$out/$3" | cut -d' ' -f1)" "$(stat -c %s "$out/$3")"
}
{
    printf '{\n  "kernel_release": "%s",\n  "images": [\n' "$release"
    entry drover-kernel kernel vmlinuz
    printf ',\n'
    entry drover-initramfs initramfs initramfs.cpio.gz
    printf ',\n'
    entry drover-rootfs disk rootfs.raw
    printf '\n  ]\n}\n'
} > "$out/.manifest"
mv "$out/.manifest" "$out/manifest.json"
echo "$stamp" > "$out/.stamp"
say "made $out: $(cd "$out" && du -h --apparent-size vmlinuz initramfs.cpio.gz rootfs.raw | awk '{printf "%s %s, ", $2, $1}' | sed 's/, $//')"
