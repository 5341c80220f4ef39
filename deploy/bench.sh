#!/usr/bin/env bash
# Measures drover against its limits on this machine: starts a nats-server and a host in a network
# namespace and a folder of their own, with guests of processes, runs `drover bench`, prints its table,
# and leaves nothing behind. Needs Debian 12 (or alike), root and Rust; installs and builds what is missing.
#
#   deploy/bench.sh [--boot | --debian] [ARGUMENTS OF drover bench]
#
# With --boot guests are the minimal image with its kernel, in software emulation where there is no other: each step
# of a boot of linux-microvm beside linux-default. With --debian the guest is a Debian with a kernel: the agent beside
# ssh, scp and QEMU's guest agent.
#
# Disks are made on the file system of /tmp and, for the sake of reflinks, on an XFS in a file, if this machine can
# mount one.
#
# Release builds are measured, with the static agent and the static holder.
#
#   DROVER_AGENT, DROVER_HOLD   static programs to use, instead of building them
#   DROVER_IMAGES               a folder of images, instead of building one
#   DROVER_CACHE                what later runs use again (~/.cache/drover)
#   DROVER_BENCH_HOST_LOG       where the host's log is kept
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/lib.sh

guest=process mode=
case ${1:-} in
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    --boot | --debian) guest=qemu mode=$1; shift ;;
esac
[ "$(id -u)" = 0 ] || die "run it as root: TAP devices, namespaces and cgroups need it"
command -v cargo > /dev/null || die "Rust is missing: install it (rustup.rs), then run this again"
mkdir -p "$CACHE"
need_debian nft=nftables ip=iproute2 nsenter=util-linux busybox=busybox-static cpio=cpio zstd=zstd \
    depmod=kmod mke2fs=e2fsprogs mkfs.xfs=xfsprogs qemu-img=qemu-utils python3=python3 pip3=python3-pip >&2
need_python >&2
if [ "$guest" = qemu ]; then
    need_debian qemu-system-x86_64=qemu-system-x86 ssh=openssh-client >&2
    need_vhost >&2
fi
export PATH="$PATH:/usr/sbin:/sbin"
unset DROVER_NAMESPACE RUST_LOG
export DROVER_NATS_URL=nats://127.0.0.1:4222

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
export DROVER_STATIC_TARGET=$CARGO_TARGET_DIR/static
bin=$CARGO_TARGET_DIR/release
say "building" >&2
cargo build -q --locked --release -p drover -p drover-hold -p softvmm --bins
static() { deploy/build-static.sh --profile release "$1" 2> "$CACHE/bench-build.log" | tail -n 1; }
agent=${DROVER_AGENT:-$(static drover-agent:drover-agent)}
hold=${DROVER_HOLD:-$(static drover-hold:drover-hold)}
[ -x "$agent" ] && [ -x "$hold" ] || die "the static programs were not built; see $CACHE/bench-build.log"
images=${DROVER_IMAGES:-$CACHE/test-images} builder=deploy/guest/build-image.sh overhead=32MiB
if [ "$mode" = --boot ]; then
    overhead=400MiB
    [ $# -gt 0 ] || set -- boot
elif [ "$mode" = --debian ]; then
    images=${DROVER_IMAGES:-$CACHE/debian-images} builder=deploy/guest/build-debian.sh overhead=400MiB
    [ $# -gt 0 ] || set -- exec files ssh qga idle --template linux-debian --calls 500 --file 16
fi
[ -n "${DROVER_IMAGES:-}" ] || "$builder" --agent "$agent" "$images" > "$CACHE/image.log" 2>&1 ||
    die "the guest's image was not built; see $CACHE/image.log"

netns=drover-bench-$$
# Short: the path of a socket has 108 bytes at most.
work=$(mktemp -d /tmp/drbXXXXXX)
nats_pid='' host_pid=''
alive() { [ -n "$1" ] && kill -0 "$1" 2> /dev/null; }
end() { # pid, seconds
    kill -TERM "$1" 2> /dev/null || return 0
    local left=$(($2 * 10))
    while alive "$1" && [ "$left" -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
    if alive "$1"; then kill -KILL "$1" 2> /dev/null || true; fi
    wait "$1" 2> /dev/null || true
}
clean_up() {
    code=$?
    trap - EXIT INT TERM
    [ -z "$host_pid" ] || end "$host_pid" 20
    [ -z "$nats_pid" ] || end "$nats_pid" 5
    # VMs outlive their daemon by design; whatever still lives in our namespace is ours.
    for pid in $(ip netns pids "$netns" 2> /dev/null); do kill -KILL "$pid" 2> /dev/null || true; done
    ip netns del "$netns" 2> /dev/null || true
    if [ -s "$work/installation" ]; then
        # A host keeps its own cgroups for its next start; this one has none. rmdir takes empty ones only.
        find /sys/fs/cgroup -depth -type d -path "*/drover-$(cat "$work/installation")*" -exec rmdir {} + 2> /dev/null || true
    fi
    [ -z "${DROVER_BENCH_HOST_LOG:-}" ] || cp "$work/host.log" "$DROVER_BENCH_HOST_LOG" 2> /dev/null || true
    # One that is still in use goes when it is not any more, and its loop device with it.
    ! mountpoint -q "$work/x" || umount "$work/x" 2> /dev/null || umount -l "$work/x" || true
    rm -rf --one-file-system "$work"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

ip netns add "$netns"
# Only the network is another: the folders of cgroups stay in sight.
inside() { nsenter --net="/run/netns/$netns" "$@"; }
inside ip link set lo up
disks_on=(--disks-on "$work")
mkdir "$work/x" "$work/in"
truncate -s 4G "$work/x.img"
if mkfs.xfs -q -m reflink=1 "$work/x.img" 2> "$work/x.err" && mount -o loop "$work/x.img" "$work/x" 2>> "$work/x.err"; then
    disks_on+=(--disks-on "$work/x")
else
    say "no reflinks: $(tail -n 1 "$work/x.err")" >&2
fi
cat > "$work/nats.conf" << END
listen: 127.0.0.1:4222
jetstream { store_dir: "$work/js", sync_interval: always }
END
# JSON is YAML as well.
cat > "$work/host.yaml" << END
{
  "host": "bench", "state_dir": "$work/s", "run_dir": "$work/r", "users_dir": "$work/u", "images_dir": "$images",
  "networks": [{"name": "default", "subnet": "10.78.0.0/20"}],
  "vmm": {"path": "$bin/softvmm", "hold": "$hold", "overhead": "$overhead"},
  "capacity": {"cpu_ratio": 1000.0, "quarantine_s": 1, "memory": "200GiB", "memory_reserve": "512MiB"},
  "quotas": {"default": {"requests": 1024}},
  "images": {"import_dirs": ["$work/in"]},
  "admin": {"listen": "127.0.0.1:9639"},
  "log": {"filter": "info,async_nats=warn"}
}
END
# Not by the function: a function in the background is a shell, and the signals would end that.
nsenter --net="/run/netns/$netns" nats-server -c "$work/nats.conf" > "$work/nats.log" 2>&1 &
nats_pid=$!
SOFTVMM_GUEST=$guest SOFTVMM_QGA=true SOFTVMM_AGENT=$agent \
    nsenter --net="/run/netns/$netns" "$bin/drover" host run --config "$work/host.yaml" > "$work/host.log" 2>&1 &
host_pid=$!
tries=150
until inside "$bin/drover" host get --deadline 2 -o json > "$work/host.json" 2> "$work/host.err" &&
    grep -q '"phase": *"ready"' "$work/host.json"; do
    tries=$((tries - 1))
    alive "$host_pid" && [ "$tries" -gt 0 ] || { cat "$work/host.err" >&2; tail -n 20 "$work/host.log" >&2; die "the host did not come up"; }
    sleep 0.2
done
sed -n 's/.*"installation": *"\([0-9A-Za-z]*\)".*/\1/p' "$work/host.json" | tr '[:upper:]' '[:lower:]' > "$work/installation"
say "measuring" >&2
# Here nobody else's VMs are on the host, so its daemon may be killed.
[ $# -gt 0 ] || set -- get load events placing create at-once disks import network exec files idle memory adoption
# In the background, so that a signal to this script reaches it.
nsenter --net="/run/netns/$netns" "$bin/drover" bench \
    --import-dir "$work/in" "${disks_on[@]}" --admin 127.0.0.1:9639 "$@" &
bench_pid=$!
trap 'end "$bench_pid" 120; exit 130' INT TERM
wait "$bench_pid"
