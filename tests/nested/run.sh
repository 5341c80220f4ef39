#!/usr/bin/env bash
# Runs the end-to-end tests on a throw-away Debian host with systemd, cgroup v2 and a working KVM, with a real
# Cloud Hypervisor: the host is a guest of QEMU's software emulation, which emulates AMD's SVM as well.
#
#   tests/nested/run.sh --vmm CLOUD_HYPERVISOR --bins DIR --images DIR --work DIR [--name NAME] [--suites FILE]
#                       TEST_PROGRAM…
#
# --bins has drover, drover-hold, softvmm and record-conformance; --images the guest image, whose kernel and
# initramfs start the host too. TEST_PROGRAM is NAME=PATH. FILE has lines NAME [FILTER…]; default: each program
# without a filter. Several hosts may run at once in one --work, each by a --name of its own.
# The transcripts of tests/conformance are compared with the hypervisor as well.
# What the tests print comes to stdout. The status is 0 if all passed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
say() { echo "nested: $*" >&2; }
die() { say "$*"; exit 1; }

vmm='' bins='' images='' work='' name=host suites='' programs=()
while [ $# -gt 0 ]; do
    case $1 in
        --vmm) vmm=${2:?}; shift 2 ;;
        --bins) bins=${2:?}; shift 2 ;;
        --images) images=${2:?}; shift 2 ;;
        --work) work=${2:?}; shift 2 ;;
        --name) name=${2:?}; shift 2 ;;
        --suites) suites=${2:?}; shift 2 ;;
        -h | --help) sed -n '2,13p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
        *=*) programs+=("$1"); shift ;;
        *) die "unknown argument $1; see --help" ;;
    esac
done
[ -x "$vmm" ] || die "--vmm $vmm is not a program"
[ ${#programs[@]} -gt 0 ] || die "no test programs; see --help"
mkdir -p "$work"
cd "$work"

# --- the system: made once for each set of packages --------------------------------------------------
PACKAGES=systemd,systemd-sysv,dbus,udev,iproute2,nftables,iputils-ping,procps,openssl,kmod,sudo
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
stamp=$(echo "$release $PACKAGES" | sha256sum | cut -c1-12)
base=$work/base-$stamp.tar
exec 9> "$work/lock"
flock 9
if ! [ -s "$base" ]; then
    say "making a Debian $release with systemd (a minute, once)"
    sources=(/etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list)
    found=()
    for file in "${sources[@]}"; do [ -s "$file" ] && grep -q "$release" "$file" && found+=("$file"); done
    rm -f base-*.tar
    mmdebstrap --quiet --variant=minbase --include="$PACKAGES" --skip=check/empty \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' \
        "$release" "$work/new.tar" "${found[@]:0:1}" > mmdebstrap.log 2>&1 || die "it failed; see $work/mmdebstrap.log"
    mv "$work/new.tar" "$base"
fi
exec 9>&-

# --- its disk: the system, the kernel's modules, what is tested -----------------------------------------
tree=$(mktemp -d -p "$work" tree.XXXXXX)
QEMU=''
trap '[ -z "$QEMU" ] || kill "$QEMU" 2> /dev/null || true; rm -rf "$tree" "$work/$name.raw"' EXIT
tar -C "$tree" --exclude='./dev/*' -xf "$base"
modules=$(find "${DROVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drover}/guest" -path '*/root/lib/modules/*' -maxdepth 5 -type d | sort | tail -n 1)
[ -n "$modules" ] || die "the kernel's modules are missing; build the guest image first"
mkdir -p "$tree/usr/lib/modules"
cp -a "$modules" "$tree/usr/lib/modules/"
cp -R "$here/tree/." "$tree/"
mkdir -p "$tree/opt/bin" "$tree/opt/tests" "$tree/opt/images"
strip -o "$tree/opt/bin/drover" "$bins/drover"
strip -o "$tree/opt/bin/drover-hold" "$bins/drover-hold"
strip -o "$tree/opt/bin/softvmm" "$bins/softvmm"
cp "$vmm" "$tree/opt/bin/cloud-hypervisor"
cp "$(command -v nats-server)" "$tree/opt/bin/nats-server"
cp "${DROVER_AGENT:?}" "$tree/opt/bin/drover-agent"
cp "$images"/* "$tree/opt/images/"
strip -o "$tree/opt/bin/record-conformance" "$bins/record-conformance"
cp -R "$here/../conformance" "$tree/opt/"
for program in "${programs[@]}"; do strip -o "$tree/opt/tests/${program%%=*}" "${program#*=}"; done
if [ -n "$suites" ]; then cp "$suites" "$tree/opt/suites"; else printf '%s\n' "${programs[@]%%=*}" > "$tree/opt/suites"; fi
cat > "$tree/opt/environment" << END
PATH=/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DROVER_BIN_DIR=/opt/bin DROVER_AGENT=/opt/bin/drover-agent DROVER_IMAGES=/opt/images
export CLOUD_HYPERVISOR=/opt/bin/cloud-hypervisor DROVER_VMM=/opt/bin/cloud-hypervisor DROVER_PATIENCE=6
END
mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
ln -s ../drover-tests.service "$tree/etc/systemd/system/multi-user.target.wants/"
# The host has no network but what the tests make, and nobody logs in.
ln -sf /dev/null "$tree/etc/systemd/system/systemd-networkd-wait-online.service"
ln -sf /dev/null "$tree/etc/systemd/system/serial-getty@ttyS0.service"
ln -sf /dev/null "$tree/etc/systemd/system/getty@tty1.service"
echo nested > "$tree/etc/hostname"
: > "$tree/etc/machine-id"
mke2fs -q -t ext4 -d "$tree" "$name.raw" 6G
rm -rf "$tree"

# --- the host ---------------------------------------------------------------------------------------
: > "$name.results.log"
# One processor: with two, QEMU 7.2's SVM loses an interrupt between them after some minutes. It also loses one of
# a timer now and then: with a tick that repeats, the next one wakes the host, which slept for ever without it.
qemu-system-x86_64 -nodefaults -no-user-config -nographic -M q35 -accel tcg,tb-size=512 -cpu max -smp 1 -m 6144 \
    -kernel "$images/vmlinuz" -initrd "$images/initramfs.cpio.gz" \
    -append "console=ttyS0 root=/dev/vda rw panic=-1 softlockup_panic=1 systemd.show_status=0 quiet mitigations=off nohz=off highres=off" \
    -drive "if=none,id=root,file=$name.raw,format=raw,cache=unsafe" -device virtio-blk-pci,drive=root \
    -device virtio-rng-pci -serial "file:$name.console.log" -serial "file:$name.results.log" -no-reboot &
QEMU=$!
tail -n +1 -F --pid="$QEMU" "$name.results.log" 2> /dev/null &
wait "$QEMU" || die "QEMU failed; see $work/$name.console.log"
QEMU=''
wait
grep -q '^SUITES-FAILED 0' "$name.results.log"
