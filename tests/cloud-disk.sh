#!/bin/sh
# Builds a disk as Debian's for clouds are: a partition table, an EFI partition, Debian's own kernel, cloud-init, sshd;
# nothing of drover's.
#
#   tests/cloud-disk.sh OUT_DIR
#
# OUT_DIR gets cloud.raw. Debian's packages come by mmdebstrap from this machine's own mirror, once. Needs root. The
# status is 75 if the mirror cannot be reached.
set -eu

say() { echo "cloud-disk: $*" >&2; }
die() { say "$*"; exit 1; }
# shellcheck source=deploy/guest/mirror.sh
. "$(dirname "$0")/../deploy/guest/mirror.sh"
[ $# = 1 ] || { sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 64; }
PACKAGES=systemd,systemd-sysv,systemd-resolved,dbus,udev,linux-image-cloud-amd64,systemd-boot-efi,cloud-init,cloud-guest-utils
PACKAGES=$PACKAGES,netplan.io,openssh-server,sudo,iproute2,procps
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"
mkdir -p "$1"
out=$(cd "$1" && pwd)
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
stamp=$(sha256sum "$0" | cut -d' ' -f1)
[ "$(cat "$out/.cloud-stamp" 2> /dev/null)" != "$stamp" ] || { say "$out/cloud.raw is up to date"; exit 0; }

say "fetching Debian $release, its kernel and cloud-init (two minutes, once)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sources=$(mirror "$release")
# A clock that is off by more than the lists are valid is no reason to stop.
# shellcheck disable=SC2016
mmdebstrap --quiet --variant=minbase --include="$PACKAGES" --skip=check/empty \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
    --customize-hook=': > "$1/etc/machine-id"' --customize-hook='rm -rf "$1"/var/lib/apt/lists/*_*' \
    "$release" "$work/tree.tar" ${sources:+"$sources"} > "$out/mmdebstrap.log" 2>&1 || {
    unreached "$out/mmdebstrap.log"
    die "mmdebstrap failed; see $out/mmdebstrap.log"
}
mkdir "$work/tree"
tar -C "$work/tree" --exclude='./dev/*' -xf "$work/tree.tar"
rm "$work/tree.tar"

# The table is of 1 MiB, then the EFI partition, then the root.
esp=$((96 << 20)) root=$((1200 << 20)) mib=$((1 << 20))
rm -f "$out/.cloud.raw"
truncate -s $((mib + esp + root + mib)) "$out/.cloud.raw"
sfdisk --quiet "$out/.cloud.raw" << END
label: gpt
start=1MiB, size=96MiB, type=uefi
size=1200MiB, type=linux, name=root
END
mkfs.vfat -n EFI -C "$work/esp" $((esp >> 10)) > /dev/null
export MTOOLS_SKIP_CHECK=1
mmd -i "$work/esp" ::EFI ::EFI/BOOT ::loader ::loader/entries
mcopy -i "$work/esp" "$work/tree/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::EFI/BOOT/BOOTX64.EFI
mcopy -i "$work/esp" "$work"/tree/boot/vmlinuz-* ::linux
mcopy -i "$work/esp" "$work"/tree/boot/initrd.img-* ::initrd
printf 'default debian\ntimeout 0\n' > "$work/loader"
printf 'title Debian\nlinux /linux\ninitrd /initrd\noptions root=PARTLABEL=root rw console=ttyS0\n' > "$work/entry"
mcopy -i "$work/esp" "$work/loader" ::loader/loader.conf
mcopy -i "$work/esp" "$work/entry" ::loader/entries/debian.conf
mke2fs -q -F -t ext4 -L root -m 1 -d "$work/tree" "$work/root" $((root >> 10))k
dd if="$work/esp" of="$out/.cloud.raw" bs=1M seek=1 conv=notrunc,sparse status=none
dd if="$work/root" of="$out/.cloud.raw" bs=1M seek=97 conv=notrunc,sparse status=none
mv "$out/.cloud.raw" "$out/cloud.raw"
echo "$stamp" > "$out/.cloud-stamp"
say "$out/cloud.raw"
