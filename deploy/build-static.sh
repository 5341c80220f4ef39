#!/bin/sh
# Builds the static programs: drover-agent, which runs in any guest, and drover-hold, which must stay
# small and must not need a library of the host.
#
#   deploy/build-static.sh [--profile release|dev] [PACKAGE:BINARY ...]
#
# The result lies in target/static/<host triple>/<profile>/.
set -eu
cd "$(dirname "$0")/.."

profile=release
if [ "${1:-}" = --profile ]; then profile=$2; shift 2; fi
[ $# -gt 0 ] || set -- drover-agent:drover-agent drover-hold:drover-hold

triple=$(rustc -vV | sed -n 's/^host: //p')
dir=${DROVER_STATIC_TARGET:-${CARGO_TARGET_DIR:-target}/static}
out=$profile
[ "$profile" = dev ] && out=debug

# A target is named even though it is the host's: then the flags reach no build script or macro.
# Debug information would only travel into every guest.
export CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=symbols
# A quarter smaller, and less of it is resident: what each guest and each VM pays.
export CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1
export RUSTFLAGS="-C target-feature=+crt-static ${RUSTFLAGS:-}"
for item in "$@"; do
    cargo build --locked --profile "$profile" --target "$triple" --target-dir "$dir" \
        -p "${item%%:*}" --bin "${item##*:}"
    binary=$dir/$triple/$out/${item##*:}
    if command -v readelf > /dev/null && readelf -l "$binary" | grep -q INTERP; then
        echo "$binary is not static" >&2
        exit 1
    fi
    echo "$binary"
done
