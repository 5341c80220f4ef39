#!/bin/sh
# Builds the Debian package of the guest agent from the static program; prints the package's path.
#
#   deploy/agent/build-deb.sh [--agent PATH] [--version VERSION] OUT_DIR
#
# PATH is built by deploy/build-static.sh if left out; VERSION is the program's own. The package needs nothing but
# systemd's helpers, enables and starts the agent when it is installed, and restarts it when it is upgraded.
# Same program, same bytes: all times in it are SOURCE_DATE_EPOCH, a fixed one if that is not set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
die() { echo "build-deb: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

agent='' version='' out=''
while [ $# -gt 0 ]; do
    case $1 in
        --agent) agent=${2:?--agent needs a path}; shift 2 ;;
        --version) version=${2:?--version needs a version}; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        -*) die "unknown option $1; see --help" ;;
        *) out=$1; shift ;;
    esac
done
[ -n "$out" ] || { usage >&2; exit 64; }
for tool in dpkg-deb dpkg strip; do
    command -v "$tool" > /dev/null || die "$tool is missing: apt-get install dpkg binutils"
done
[ -n "$agent" ] || agent=$("$here/../build-static.sh" drover-agent:drover-agent)
[ -x "$agent" ] || die "$agent is not a program; build it with deploy/build-static.sh"
if readelf -l "$agent" | grep -q INTERP; then
    die "$agent is linked dynamically; build it with deploy/build-static.sh"
fi
[ -n "$version" ] || version=$("$agent" --version | sed -n 's/^drover-agent //p')
[ -n "$version" ] || die "$agent does not tell its version"
arch=$(dpkg --print-architecture)

umask 022
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1700000000}" LC_ALL=C TZ=UTC
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
chmod 755 "$work"
doc=$root/usr/share/doc/drover-agent units=$root/lib/systemd/system
mkdir -p "$root/DEBIAN" "$root/usr/bin" "$units" "$doc" "$root/usr/share/lintian/overrides"
strip --strip-all --remove-section=.comment --remove-section=.note -o "$root/usr/bin/drover-agent" "$agent"
cp "$here/drover-agent.service" "$units/"
# What lets systemd tell of services that fail.
cp -R "$here/systemd/." "$units/"
cp "$here/debian/lintian-overrides" "$root/usr/share/lintian/overrides/drover-agent"
for script in postinst prerm postrm; do cp "$here/debian/$script" "$root/DEBIAN/"; done
{
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nSource: https://github.com/drover-vm/drover\n\n'
    printf 'Files: *\nCopyright: %s\nLicense: MIT\n' "$(sed -n 's/^Copyright (c) //p' "$here/../../LICENSE")"
    sed '1,/^Copyright/d; s/^$/./; s/^/ /' "$here/../../LICENSE" | sed '1{/^ \.$/d}'
} > "$doc/copyright"
printf 'drover-agent (%s) unstable; urgency=medium\n\n  * Built from the sources of drover %s.\n\n -- drover <maintainers@drover.invalid>  %s\n' \
    "$version" "$version" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n > "$doc/changelog.gz"
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm" "$root/usr/bin/drover-agent"
chmod -R u=rwX,go=rX "$units" "$root/usr/share/lintian"
cat > "$root/DEBIAN/control" << END
Package: drover-agent
Version: $version
Architecture: $arch
Maintainer: drover <maintainers@drover.invalid>
Installed-Size: $(find "$root" -path "$root/DEBIAN" -prune -o -type f -printf '%s\n' | awk '{n += int(($1 + 1023) / 1024)} END {print n}')
Depends: init-system-helpers (>= 1.52)
Section: admin
Priority: optional
Homepage: https://github.com/drover-vm/drover
Description: guest agent of drover, a supervisor of microVMs
 Serves the host of this guest over vsock, without a network: commands, a shell,
 files and folders, facts, power. Only the host can reach it.
END
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) > "$root/DEBIAN/md5sums"
chmod 644 "$root/DEBIAN/control" "$root/DEBIAN/md5sums"
package=$out/drover-agent_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz -b "$root" "$work/package.deb" > /dev/null
mv "$work/package.deb" "$package"
echo "$package"
