#!/usr/bin/env bash
# Runs the tests, after installing what they need, and prints a table of what ran.
#
#   tests/run.sh [SUITE…] [--budget SECONDS] [--seed NUMBER] [--size MIB]
#
# Every message that a host says or hears in the suites e2e to soak is held against the published contract
# (schemas/asyncapi.json); at the end stands how many of which kind there were, and which kinds none has shown.
#
# Suites (default: unit wire e2e faults death bus agent images network):
#   unit         formatting, lints, licences, and the tests beside the code
#   wire         the contract in another language: golden bytes read by Python
#   e2e          the real programs over a real nats-server: guests that are processes, and real kernels in
#                QEMU's software emulation; the same host used from Python and JavaScript
#   faults       daemon, VMM and bus are killed, hung and cut off, and what is left is looked at
#   death        as faults, and each cause of an end, what a VMM can reach, and a short soak; the real hypervisor is looked
#                at too if CLOUD_HYPERVISOR names it
#   bus          the bus under fire: floods, quotas, what is too large, a stream that is tampered with, connections
#                that are cut while --size MiB (96) move or that idle, several hosts, what each role may do,
#                certificates, other versions; three hosts beside a model while for --budget seconds (20) by --seed
#                links are cut, servers and daemons killed
#   agent        the guest agent as its users meet it: a shell driven through tmux, commands with users, limits and
#                deadlines, detached ones that outlive the daemon; policies of hosts and guests; disks that are frozen and
#                thawed, whoever dies meanwhile; clocks, CPUs, unused blocks and clones; users and SSH keys; events that
#                programs of guests publish, whatever breaks on their way; checks and thresholds; an agent that is replaced
#                while all of it goes on; agents that lie, and each verb while agent, guest, VMM or daemon ends or falls
#                silent; on real kernels in QEMU's software emulation; its package and scripts, and a Debian with systemd
#                and sshd that it is installed in; a file of --size MiB (96) each way while commands are run
#   images       files, URLs and what registries have into the store of images, to VMs, to other hosts of the fleet, and
#                away; what is refused; daemons and servers that die meanwhile
#   network      traffic of guests between namespaces: what others take from the host's network comes back under running
#                guests, no guest speaks for another, forwarded ports that come and go, who reaches whom and how fast, the
#                same by IPv6, and addresses that come over the link
#   soak         the daemon is killed for --budget seconds under random work of --seed, beside a model
#   conformance  softvmm against transcripts of the real Cloud Hypervisor
#   nested       the end-to-end suites with the real Cloud Hypervisor that CLOUD_HYPERVISOR names, on a throw-away
#                Debian host with KVM, systemd and cgroup v2 in QEMU's software emulation (half an hour)
#   fuzz         random bytes at everything that reads bytes, for --budget seconds each
#   bench        the rows of `drover bench`, as ratios to the same work done by hand; a release build (minutes)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
. tests/lib.sh

BUDGET=
SEED=
SIZE=96
SUITES=()
while [ $# -gt 0 ]; do
    case $1 in
        --budget) BUDGET=${2:?--budget takes seconds}; shift 2 ;;
        --seed) SEED=${2:?--seed takes a number}; shift 2 ;;
        --size) SIZE=${2:?--size takes MiB}; shift 2 ;;
        -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
        unit | wire | e2e | faults | death | bus | agent | images | network | soak | conformance | nested | fuzz | bench)
            SUITES+=("$1"); shift ;;
        *) die "unknown suite $1; see --help" ;;
    esac
done
[ ${#SUITES[@]} -gt 0 ] || SUITES=(unit wire e2e faults death bus agent images network)
wants() { [[ " ${SUITES[*]} " == *" $1 "* ]]; }

mkdir -p "$CACHE"
[ "$(id -u)" = 0 ] || die "run as root: the tests make network namespaces and TAP devices of their own"
command -v cargo > /dev/null || die "cargo is missing; install Rust with rustup"
# Dependencies are compiled once for all checkouts.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
export RUST_BACKTRACE=0
unset RUST_LOG
LOGS=$CACHE/logs
rm -rf "$LOGS" && mkdir -p "$LOGS"
# What the observers of hosts have counted.
export DROVER_SEEN=$LOGS/seen
mkdir "$DROVER_SEEN"
# What the tests make lies here and nowhere else.
export TMPDIR=${TMPDIR:-/tmp}

PASSED=0 FAILED=0 SKIPPED=0
ROWS=()
row() { ROWS+=("$(printf '%-12s %-34s %-8s %6ss  %s' "$1" "$2" "$3" "$4" "$5")"); }

# step SUITE NAME COMMAND… : one line of the table.
step() {
    local suite=$1 name=$2 log began=$SECONDS took
    shift 2
    log=$LOGS/$suite-${name//[^a-z0-9]/-}.log
    printf '== %s: %s\n' "$suite" "$name"
    if "$@" > "$log" 2>&1; then
        took=$((SECONDS - began))
        local tests skips
        tests=$(grep -Eo '[0-9]+ passed' "$log" | awk '{n += $1} END {print n + 0}')
        skips=$(grep -c '^ *SKIP' "$log")
        PASSED=$((PASSED + (tests > 0 ? tests : 1)))
        SKIPPED=$((SKIPPED + skips))
        row "$suite" "$name" ok "$took" "$([ "$tests" -gt 0 ] && echo "$tests tests")$([ "$skips" -gt 0 ] && echo ", $skips skipped")"
        grep -E '^ *SKIP' "$log" | sort -u | while read -r line; do printf '   %s\n' "$line"; done
    else
        took=$((SECONDS - began))
        FAILED=$((FAILED + 1))
        row "$suite" "$name" FAILED "$took" "$log"
        grep -E '^(error|warning)|panicked|FAIL|failed|Diff in' "$log" | head -40
        tail -n 40 "$log"
    fi
}

skip() {
    SKIPPED=$((SKIPPED + 1))
    row "$1" "$2" skipped 0 "$3"
}

# Packages are always chosen out of the whole workspace: with another set of them their dependencies would have
# other features, and be compiled again.
# beside FILTERSET CARGO-SELECTION… : cargo-nextest runs each test in a process of its own; without it cargo does.
beside() {
    if cargo nextest --version > /dev/null 2>&1; then
        cargo nextest run --locked --workspace --no-fail-fast --success-output never --status-level slow -E "$1"
    else
        cargo test --locked "${@:2}"
    fi
}

need_debian nft=nftables ip=iproute2 ping=iputils-ping cc=gcc python3=python3 pip3=python3-pip
need_python

BIN=$CARGO_TARGET_DIR/debug
build() {
    cargo build --locked --workspace --bins && cargo test --locked --workspace --no-run &&
        deploy/build-static.sh drover-agent:drover-agent drover-hold:drover-hold other-agent:other-agent
}
# real FILE THREADS : an end-to-end suite; each test prints SKIP with its reason if it cannot run.
real() {
    cargo test --locked --workspace --test "$1" -- --test-threads "$2" --show-output
}

if wants unit; then
    step unit formatting cargo fmt --all --check
    step unit lints cargo clippy --workspace --all-targets --locked -- -D warnings
    if need_crate cargo-deny cargo-deny "$DENY_VERSION"; then
        step unit "licences, bans and sources" cargo deny --config .cargo/deny.toml check bans licenses sources
    else
        skip unit "licences, bans and sources" "cargo-deny could not be installed; see $CACHE/cargo-deny.log"
    fi
    step unit "tests beside the code" beside "not package(drover-tests) and not package(softvmm)" \
        --workspace --exclude drover-tests --exclude softvmm
    step unit softvmm beside "package(softvmm)" -p softvmm
fi

if wants conformance && ! wants unit; then
    step conformance "transcripts of the real VMM" cargo test --locked -p softvmm conformance
fi

if wants wire; then
    step wire "golden bytes in Python" python3 tests/python/test_golden.py
    step wire "the Python client's bodies" python3 tests/clients/python/generate.py --check
    step wire "the Python client's types" env MYPYPATH=tests/clients/python/src python3 -m mypy --strict \
        --cache-dir "$CACHE/mypy" tests/clients/python/src
fi

if wants e2e || wants faults || wants death || wants bus || wants agent || wants images || wants network || wants soak || wants nested; then
    need_debian qemu-system-x86_64=qemu-system-x86 busybox=busybox-static cpio=cpio zstd=zstd depmod=kmod mke2fs=e2fsprogs openssl=openssl
    need_vhost
    step e2e build build
    export DROVER_BIN_DIR=$BIN
    DROVER_AGENT=$(find "$CARGO_TARGET_DIR/static" -path '*/release/drover-agent' -type f | head -n 1)
    export DROVER_AGENT
    export DROVER_IMAGES=$CACHE/test-images
    step e2e "guest image" deploy/guest/build-image.sh --agent "$DROVER_AGENT" "$DROVER_IMAGES"
fi

if wants e2e; then
    step e2e "errors as a new user meets them" real errors 2
    step e2e "the life of a VM" real lifecycle 2
    step e2e "ways to log in to the bus" real bus 2
    step e2e "effects happen once" real idempotency 2
    step e2e "what a host tells unasked" real told 2
    step e2e "traces, metrics, health and logs" real telemetry 2
    step e2e "a hundred VMs at once" real scale 1
    step e2e "real kernels" real real_guest 1
    step e2e "the console" real console 1
    step e2e "the host from Python" python3 -W ignore tests/python/test_host.py
    step e2e "the client in Python" python3 -W ignore tests/clients/python/test_client.py
    if need_node tests/clients/javascript; then
        step e2e "the client in JavaScript" python3 -W ignore tests/clients/javascript/test_client.py
    else
        skip e2e "the client in JavaScript" "Node.js or its packages could not be installed; see $CACHE/npm.log"
    fi
fi

# What adoption promises is part of both.
if wants faults || wants death; then
    step faults "killed, hung and cut off" real faults 2
fi

# soaked SECONDS TEST : kills the daemon for that long; a seed makes the same choices again.
soaked() {
    DROVER_SOAK_SECONDS=$1 DROVER_SOAK_SEED=$SEED cargo test --locked --workspace --test soak "$2" -- \
        --test-threads 1 --show-output
}

if wants death; then
    step death "each cause of an end" real causes 2
    step death "what a VMM can reach" real confinement 2
    step death "VMs that no row tells of" real orphans 2
    step death "full disks, few descriptors" real full 2
    step death "one is stuck, fifty work" real wedged 1
    step death "a service of systemd" real systemd 1
    step death "a short soak" soaked 15 nothing_is_lost_or_doubled_by_kills
fi

# modelled : with a seed the same choices are made again; what they meet differs.
modelled() {
    DROVER_MODEL_SECONDS=${BUDGET:-20} DROVER_MODEL_SEED=$SEED real model 1
}

if wants bus; then
    step bus "more than there is room for" real overload 2
    step bus "the log of events, tampered with" real events 2
    step bus "several hosts" real fleet 2
    step bus "who may do what" real tenants 2
    need_debian tmux=tmux
    step bus "streams that idle for long" real idle 1
    # Without it that part of the test is skipped and said to be.
    need_node tests/clients/javascript || true
    step bus "certificates, and a cluster" real tls 2
    step bus "what judges a history" cargo test --locked --workspace --lib -- contest
    step bus "other versions" real versions 2
    step bus "streams on a bus that breaks" env DROVER_STREAM_MIB="$SIZE" cargo test --locked --workspace --test streams \
        -- --test-threads 2 --show-output
    step bus "three hosts and every fault" modelled
    grep -hE '^(FLOOD|STREAM)|Tally' "$LOGS"/bus-*.log
fi

# debian_disk : the disk, unless there is none to be had: then that is said, and DROVER_DEBIAN is not set.
debian_disk() {
    timeout 900 deploy/guest/build-debian.sh --agent "$DROVER_AGENT" "$CACHE/debian-images"
    case $? in
        0) export DROVER_DEBIAN=$CACHE/debian-images ;;
        75 | 124) echo "SKIP all that needs Debian: the mirror of its packages cannot be reached" ;;
        *) return 1 ;;
    esac
}

if wants agent; then
    need_debian tmux=tmux ssh=openssh-client shellcheck=shellcheck
    step agent "the agent by itself" cargo test --locked --workspace --test commands --test runs --test host --test succession
    step agent "shells, commands and runs" real agent 1
    step agent "files" real files 2
    step agent "what a guest is asked for" real policy 2
    step agent "events from inside" real emit 1
    step agent "what guests say of themselves" real look 2
    step agent "what is watched in guests" real watch 2
    step agent "work for the host" real work 1
    step agent "an agent in another's place" real upgrade 1
    step agent "agents of other versions" real releases 2
    step agent "agents that lie" real hostile 2
    grep -hE '^(others|the daemon|.*: dialled)' "$LOGS"/agent-agents-that-lie.log
    step agent "requests under way when something ends" real inflight 2
    step agent "users and SSH keys" real accounts 2
    step agent "a large file" env DROVER_FILE_MIB="$SIZE" cargo test --locked --workspace --test large -- --show-output
    step agent "a root disk with Debian" debian_disk
    if [ -n "${DROVER_DEBIAN:-}" ]; then
        step agent "Debian" real debian 1
        step agent "the agent's package" tests/package.sh "$DROVER_AGENT" "$CACHE"/guest/debian-*.tar
    fi
    wants e2e || step agent "the client in Python" python3 -W ignore tests/clients/python/test_client.py
fi

# cloud_disk : a disk as Debian's for clouds are, unless there is none to be had; DROVER_CLOUD names its folder.
cloud_disk() {
    timeout 900 tests/cloud-disk.sh "$CACHE/cloud-images"
    case $? in
        0) export DROVER_CLOUD=$CACHE/cloud-images ;;
        75 | 124) echo "SKIP a disk made for clouds: the mirror of Debian's packages cannot be reached" ;;
        *) return 1 ;;
    esac
}

if wants images; then
    step images "from a file to a VM and away" real images 2
    step images "shared by the hosts of a fleet" real sharing 2
    step images "fetched from URLs" real fetching 2
    step images "pulled from registries" real oci 2
    step images "signed ones only" real signed 2
    step images "templates" real templates 2
    step images "disks of VMs" real disks 2
    step images "disks that lie over images" real overlays 2
    step images "disks that become longer" real growth 2
    step images "disks that outlive their VMs" real volumes 2
    need_debian qemu-img=qemu-utils xorrisofs=xorriso mke2fs=e2fsprogs
    step images "qcow2, discs and root file systems" real formats 1
    need_debian mmdebstrap=mmdebstrap mcopy=mtools mkfs.vfat=dosfstools sfdisk=fdisk
    [ -f /usr/share/ovmf/OVMF.fd ] || need_debian /usr/share/ovmf/OVMF.fd=ovmf
    step images "a disk made for clouds" cloud_disk
    [ -z "${DROVER_CLOUD:-}" ] || step images "the agent from a seed disk" real cloud 1
fi

if wants network; then
    wants unit || step network "bridges, TAPs and rules" cargo test --locked --workspace --test network
    wants unit || step network "IPv6 of bridges, TAPs and rules" cargo test --locked --workspace --test frames
    step network "guests and what others do" real traffic 2
    step network "forwards that come and go" real forwards 2
    step network "what guests may reach" real egress 2
    step network "IPv6 of guests" real ipv6 2
    # By itself: it measures.
    step network "how fast guests are" real limits 1
    step network "guests set up over the link" real network_link 1
    need_debian busybox=busybox-static
    step network "addresses and names for who asks" real names 2
    step network "subnets that hosts take" real subnets 1
    step network "networks of several bridges" real bridges 1
    step network "networks that come and go" real networks 1
fi

if wants soak; then
    step soak "guests of processes" soaked "${BUDGET:-60}" nothing_is_lost_or_doubled_by_kills
    step soak "guests with kernels" soaked "${BUDGET:-60}" nothing_is_lost_or_doubled_with_real_kernels
    grep -h Tally "$LOGS"/soak-*.log
fi

# nested : programs of tests on hosts made for them, two at once; see tests/nested/run.sh.
nested() (
    built=$(cargo test --locked --workspace --no-run 2>&1) || return 1
    failed=0 pids=()
    trap 'kill "${pids[@]}" 2> /dev/null' EXIT
    mkdir -p "$CACHE/nested"
    # The one processor of an emulated host is too little for ten kernels that boot at once.
    for name in one two; do
        programs=() suites=NESTED_${name^^}[@]
        for suite in "${!suites}"; do
            programs+=("$suite=$(sed -n "s|.*tests/$suite.rs (\(.*\))|\1|p" <<< "$built")")
            echo "$suite" | sed 's/^real_guest$/& --skip ten_real_guests_at_once_get_ready/'
        done > "$CACHE/nested/$name.suites"
        tests/nested/run.sh --vmm "$CLOUD_HYPERVISOR" --bins "$BIN" --images "$DROVER_IMAGES" --work "$CACHE/nested" \
            --name "$name" --suites "$CACHE/nested/$name.suites" "${programs[@]}" > "$LOGS/host-$name.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    cat "$LOGS"/host-*.log
    echo "SKIP ten_real_guests_at_once_get_ready: the emulated host has one processor"
    return $failed
)
# Each host has one processor and about half of the work.
NESTED_ONE=(systemd confinement console causes full told)
NESTED_TWO=(orphans lifecycle idempotency real_guest faults)
if [ ! -x "${CLOUD_HYPERVISOR:-}" ]; then
    if wants nested || wants death; then
        skip nested "the real hypervisor" "CLOUD_HYPERVISOR names none; needs: CLOUD_HYPERVISOR=path tests/run.sh nested"
    fi
elif wants nested; then
    need_debian mmdebstrap=mmdebstrap
    step nested "the real hypervisor" nested
    grep -h '^HOST' "$LOGS"/host-one.log
fi

# fuzz NAME : one target of tests/fuzz, from the golden bytes on, with libFuzzer and the pinned compiler.
fuzz() {
    local seeds=() corpus=$CACHE/fuzz/$1
    mkdir -p "$corpus" "$LOGS/fuzz-$1"
    case $1 in codec) seeds=(schemas/golden/bus) ;; frames | agent) seeds=(schemas/golden/guest) ;; esac
    "$FUZZ_DIR/release/$1" -max_total_time="${BUDGET:-60}" -rss_limit_mb=1024 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="$LOGS/fuzz-$1/" "$corpus" "${seeds[@]}"
}
build_fuzz() {
    # What cargo-fuzz sets for coverage without a sanitizer, so that neither it nor a nightly is needed.
    RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Ccodegen-units=1" \
        cargo build --locked --release --manifest-path tests/fuzz/Cargo.toml --target "$(rustc -vV | sed -n 's/^host: //p')" \
        --target-dir "$CARGO_TARGET_DIR/fuzz"
}
if wants fuzz; then
    need_debian g++=g++
    step fuzz "random values against models" env PROPTEST_CASES=$((${BUDGET:-60} * 100)) \
        cargo test --locked -p drover-schemas -p drover-actors -p drover-agent --lib -- survived panic bytes
    step fuzz build build_fuzz
    FUZZ_DIR=$CARGO_TARGET_DIR/fuzz/$(rustc -vV | sed -n 's/^host: //p')
    for target in codec frames agent streams api_replies vmm_events; do
        step fuzz "$target" fuzz "$target"
    done
fi

if wants bench; then
    # Numbers are for reading, not for passing: the step fails only if one could not be measured.
    step bench "drover beside its limits" deploy/bench.sh
    step bench "a boot, step by step" deploy/bench.sh --boot
    step bench "the agent beside ssh and QEMU's" deploy/bench.sh --debian
    cat "$LOGS"/bench-*.log
fi

if [ -n "$(ls -A "$DROVER_SEEN")" ]; then
    printf '\nmessages seen, and held against the published contract:\n'
    tests/seen.py "$DROVER_SEEN"
fi

printf '\n%-12s %-34s %-8s %7s  %s\n' suite what result time ''
printf '%s\n' "${ROWS[@]}"
printf '\n%d passed, %d failed, %d skipped\n' "$PASSED" "$FAILED" "$SKIPPED"
[ "$FAILED" = 0 ]
