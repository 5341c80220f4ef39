#!/bin/sh
# Builds a Debian root disk for guests: systemd, sshd, the agent from its package, QEMU's guest agent to compare with.
#
#   deploy/guest/build-debian.sh [--agent PATH] [--size MIB] [--fresh] OUT_DIR
#
# OUT_DIR gets what build-image.sh makes (the kernel and the initramfs that boot the disk), debian.raw (drover-debian)
# with an entry in manifest.json, debian.packages with the version of each package, and drover-agent.deb.
# `drover vm create -t linux-debian` boots it. Nobody can log in before the agent has put a key there; each guest makes host keys of its own.
#
# Debian's packages come by mmdebstrap from this machine's own mirror, once; --fresh fetches them again. What is
# fetched lies in the cache of build-image.sh. Needs root. Same packages, same agent: same bytes. The status is 75 if
# the mirror cannot be reached.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
say() { echo "build-debian: $*" >&2; }
die() { say "$*"; exit 1; }
# shellcheck source=deploy/guest/mirror.sh
. "$here/mirror.sh"
usage() { sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

PACKAGES=systemd,systemd-sysv,dbus,udev,iproute2,iputils-ping,procps,kmod,openssh-server,qemu-guest-agent
# What a guest of half a gigabyte without a screen does not need, or what a slow one waits for.
MASKED='systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
    e2scrub_all.timer e2scrub_reap.service fstrim.timer getty@tty1.service serial-getty@ttyS0.service
    systemd-journal-catalog-update.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
    systemd-pstore.service modprobe@drm.service modprobe@fuse.service modprobe@efi_pstore.service'

agent='' size=600 fresh='' out=''
while [ $# -gt 0 ]; do
    case $1 in
        --agent) agent=${2:?--agent needs a path}; shift 2 ;;
        --size) size=${2:?--size needs a number of MiB}; shift 2 ;;
        --fresh) fresh=1; shift ;;
        -h | --help) usage; exit 0 ;;
        -*) die "unknown option $1; see --help" ;;
        *) out=$1; shift ;;
    esac
done
[ -n "$out" ] || { usage >&2; exit 64; }
[ "$(id -u)" = 0 ] || die "run it as root: the disk's files have owners"
command -v apt-get > /dev/null || die "needs apt-get: run it on Debian, or in such a container"
umask 022
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1700000000}" LC_ALL=C.UTF-8 TZ=UTC
cache=${DROVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drover}/guest
PATH=$PATH:/usr/sbin:/sbin
if ! command -v mmdebstrap > /dev/null; then
    say "installing mmdebstrap"
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mmdebstrap > /dev/null ||
        { apt-get update > "$cache/apt.log" 2>&1 || true; unreached "$cache/apt.log"; die "apt offers no mmdebstrap"; }
fi
if [ -z "$agent" ]; then
    say "building the agent"
    agent=$("$here/../build-static.sh" drover-agent:drover-agent)
fi
"$here/build-image.sh" --agent "$agent" "$out"
out=$(cd "$out" && pwd)
kernel=$(sed -n 's/.*"kernel_release": "\(.*\)",/\1/p' "$out/manifest.json")
modules=$(find "$cache" -maxdepth 5 -path "*/root/lib/modules/$kernel" -type d | head -n 1)
[ -n "$modules" ] || die "the modules of kernel $kernel are not in $cache"

# --- Debian's packages: fetched and configured once -----------------------------------------------
base=$cache/debian-$(sed -n '/^PACKAGES=/p; /mmdebstrap --quiet/,/new\.tar/p' "$0" | sha256sum | cut -c1-12).tar
if [ -n "$fresh" ] || ! [ -s "$base" ]; then
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    say "fetching Debian $release and its packages (a minute, once)"
    sources=$(mirror "$release")
    # A clock that is off by more than the lists are valid is no reason to stop.
    # shellcheck disable=SC2016
    mmdebstrap --quiet --variant=minbase --include="$PACKAGES" --skip=check/empty \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
        "$release" "$cache/new.tar" ${sources:+"$sources"} > "$cache/mmdebstrap.log" 2>&1 ||
        { rm -f "$cache/new.tar"; unreached "$cache/mmdebstrap.log"; die "mmdebstrap failed; see $cache/mmdebstrap.log"; }
    rm -f "$cache"/debian-*.tar
    mv "$cache/new.tar" "$base"
fi

# --- nothing to do? ---------------------------------------------------------------------------------
stamp=$( (echo "$size $kernel $SOURCE_DATE_EPOCH $(sha256sum "$base" | cut -d" " -f1)"
    sha256sum "$agent" "$0" | cut -d' ' -f1
    cd "$here/.." && find agent guest/debian -type f | sort | xargs sha256sum) | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/.debian-stamp" 2> /dev/null)" = "$stamp" ] && grep -q '"drover-debian"' "$out/manifest.json"; then
    say "$out/debian.raw is up to date"
    exit 0
fi

# --- its files ----------------------------------------------------------------------------------------
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
mkdir "$tree"
tar -C "$tree" --exclude='./dev/*' -xf "$base"
mkdir -p "$tree/lib/modules/$kernel"
cp -a "$modules/." "$tree/lib/modules/$kernel/"
depmod -b "$tree" "$kernel"
cp -R "$here/debian/." "$tree/"
deb=$("$here/../agent/build-deb.sh" --agent "$agent" "$work")
dpkg --root="$tree" -i "$deb" > "$work/dpkg.log" 2>&1 || die "the agent's package: $(cat "$work/dpkg.log")"
chroot "$tree" useradd --create-home --shell /bin/bash --uid 1000 --groups adm,users debian
for unit in $MASKED; do ln -sf /dev/null "$tree/etc/systemd/system/$unit"; done
chroot "$tree" systemctl --quiet enable systemd-networkd.service systemd-network-generator.service ssh.service \
    drover-hostname.service drover-ssh-keys.service
rm -f "$tree/etc/resolv.conf" "$tree"/var/lib/dpkg/*-old "$tree"/etc/*- \
    "$tree/var/cache/ldconfig/aux-cache" "$tree/var/lib/systemd/random-seed"
rm -rf "$tree"/var/log/* "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/run/* "$tree"/tmp/*
mkdir -p "$tree/var/lib/apt/lists/partial" "$tree/var/cache/apt/archives/partial" "$tree/var/log/journal"
rmdir "$tree/var/log/journal"
# Empty: each machine makes its own at its first boot.
: > "$tree/etc/machine-id"
dpkg-query --admindir="$tree/var/lib/dpkg" -W -f '${Package} ${Version}\n' | sort > "$work/packages"
find "$tree" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# --- the disk -----------------------------------------------------------------------------------------
# Written beside and renamed, so that a reader never sees half of one.
raw=$out/.debian.raw
rm -f "$raw"
truncate -s "${size}M" "$raw"
id=$(echo "$stamp" | sed 's/^\(.\{8\}\)\(.\{4\}\)\(.\{3\}\)\(.\{3\}\)\(.\{12\}\).*/\1-\2-4\3-8\4-\5/')
export E2FSPROGS_FAKE_TIME="$SOURCE_DATE_EPOCH"
mke2fs -q -F -t ext4 -L drover-debian -U "$id" -E "hash_seed=$id,root_owner=0:0" -m 1 -d "$tree" "$raw"
# mke2fs takes the time of a file's last change of state, which cannot be set, from the tree.
used=$(dumpe2fs -h "$raw" 2> /dev/null | awk '/^Inode count/ {all = $3} /^Free inodes/ {free = $3} END {print all - free}')
awk -v n="$used" -v t="@$SOURCE_DATE_EPOCH" 'BEGIN { for (i = 2; i <= n; i++) {
    print "set_inode_field <" i "> ctime " t; print "set_inode_field <" i "> ctime_extra 0"
    print "set_inode_field <" i "> atime " t; print "set_inode_field <" i "> atime_extra 0" } }' > "$work/times"
debugfs -w -f "$work/times" "$raw" > "$work/debugfs.log" 2>&1 || die "debugfs: $(tail -n 3 "$work/debugfs.log")"
mv "$raw" "$out/debian.raw"
mv "$work/packages" "$out/debian.packages"
mv "$deb" "$out/drover-agent.deb"

entry=$(printf '    {"name": "drover-debian", "kind": "disk", "file": "debian.raw", "sha256": "%s", "size": %s}' \
    "$(sha256sum "$out/debian.raw" | cut -d' ' -f1)" "$(stat -c %s "$out/debian.raw")")
awk -v new="$entry" '
    /^    \{/ { sub(/,$/, ""); if (!/"drover-debian"/) print $0 ","; next }
    /^  \]/ { print new }
    { print }' "$out/manifest.json" > "$out/.manifest"
mv "$out/.manifest" "$out/manifest.json"
echo "$stamp" > "$out/.debian-stamp"
say "made $out/debian.raw: $(du -h --apparent-size "$out/debian.raw" | cut -f1), $(du -h "$out/debian.raw" | cut -f1) of it used"
