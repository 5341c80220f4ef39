#!/usr/bin/env bash
# The agent's package in a Debian of its own: installed, upgraded, removed, and its unit and scripts looked at.
#
#   tests/package.sh AGENT BASE_TAR
#
# AGENT is the static program, BASE_TAR the system that deploy/guest/build-debian.sh keeps in its cache. Nothing of
# this machine is touched; OpenRC and the agent under it run in a process namespace that ends with the test.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
agent=${1:?} base=${2:?}
PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root passed=0 failed=0

# holds WHAT COMMAND… : one line for each thing that is so or is not.
holds() {
    local what=$1
    shift
    if "$@" > "$work/said" 2>&1; then
        passed=$((passed + 1))
        echo "ok    $what"
    else
        failed=$((failed + 1))
        echo "FAIL  $what"
        sed 's/^/      /' "$work/said"
    fi
}
says() { local wanted=$1; shift; local said; said=$("$@" 2>&1); [ "$said" = "$wanted" ] || { echo "said: $said"; return 1; }; }
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
install() { cp "$1" "$root/package.deb" && inside dpkg -i /package.deb; }
enabled() { inside systemctl is-enabled drover-agent; }
# What lies in the system beside what dpkg itself keeps.
listed() { (cd "$root" && find . \( -path ./var/lib/dpkg -o -path ./var/log -o -path ./dev -o -path ./run -o -path ./package.deb \) -prune -o -print | sort); }

old=$(deploy/agent/build-deb.sh --agent "$agent" --version 0.0.1 "$work/old") || exit 1
new=$(deploy/agent/build-deb.sh --agent "$agent" "$work/new") || exit 1
again=$(umask 077 && TZ=Asia/Tokyo deploy/agent/build-deb.sh --agent "$agent" "$work/again") || exit 1
mkdir "$root"
tar -C "$root" --exclude='./dev/*' -xf "$base" || exit 1
version=$("$agent" --version)

holds "the same program makes the same package" cmp "$new" "$again"
if command -v lintian > /dev/null; then
    holds "Debian's own checks have nothing against it" lintian --allow-root --fail-on error,warning "$new"
else
    echo "SKIP Debian's own checks: lintian is not installed"
fi
if command -v shellcheck > /dev/null; then
    holds "its scripts" shellcheck -x deploy/agent/build-deb.sh deploy/agent/debian/p* deploy/agent/seed/install \
        deploy/guest/build-debian.sh deploy/guest/mirror.sh tests/cloud-disk.sh
    holds "the script for OpenRC" shellcheck -s sh deploy/agent/drover-agent.openrc
else
    echo "SKIP the look at its scripts: shellcheck is not installed"
fi

listed > "$work/before"
holds "it installs where no systemd runs" install "$old"
holds "and the agent starts with the guest" says enabled enabled
holds "the program runs" says "$version" inside drover-agent --version
holds "systemd has nothing against the unit" says "" inside systemd-analyze verify /lib/systemd/system/drover-agent.service
holds "nor against who tells of services that fail" says "" inside systemd-analyze verify drover-agent-failed@ssh.service
holds "who disables it" inside systemctl --quiet disable drover-agent
holds "and upgrades" install "$new"
holds "has it disabled still" says disabled enabled
holds "who removes it" inside dpkg -r drover-agent
holds "has no program" test ! -e "$root/usr/bin/drover-agent"
holds "and no unit that starts" says masked enabled
holds "installed again" install "$new"
holds "it is as it was left" says disabled enabled
holds "purged" inside dpkg -P drover-agent
listed > "$work/after"
holds "it leaves nothing" diff "$work/before" "$work/after"

# --- cloud-init: what its lines do at a guest's first boot -------------------------------------------------
# They fetch and look; where Debian's dpkg would work on this machine, ours works on the system beside.
sed -n '/content: |/,/^runcmd:/{s/^      //p}' deploy/agent/image/cloud-init.yaml |
    sed "s|^url=.*|url=file://$new|" > "$work/install-wrong"
sed "s|^sha256=.*|sha256=$(sha256sum "$new" | cut -d' ' -f1)|" "$work/install-wrong" > "$work/install-right"
mkdir "$work/bin"
printf '#!/bin/sh\nexec %s --root=%s "$@"\n' "$(command -v dpkg)" "$root" > "$work/bin/dpkg"
chmod 755 "$work/bin/dpkg"
first_boot() { PATH=$work/bin:$PATH DEBIAN_FRONTEND=noninteractive sh "$work/install-$1"; }
another_digest() { ! first_boot wrong; }
holds "cloud-init's lines take no package of another digest" another_digest
holds "and leave nothing of it" test ! -e "$root/usr/bin/drover-agent"
holds "they install the right one" first_boot right
holds "which starts with the guest" says enabled enabled
holds "and is purged again" inside dpkg -P drover-agent

# --- image builders: what their lines do to an image ---------------------------------------------------------
image=deploy/agent/image
# On the system beside, as the builder would run them; the agent starts with the guest then, and no package lies about.
built() {
    local by=$1
    shift
    echo "0123456789abcdef0123456789abcdef" > "$root/etc/machine-id"
    holds "the lines for $by install it" "$@"
    holds "where it starts with the guest" says enabled enabled
    holds "and no package is left" says "" find "$root/tmp" -mindepth 1
    holds "purged once more" inside dpkg -P drover-agent
}
# Since mkosi 15 the script runs beside the image, before that within it; what is built first is no image yet.
mkosi_beside() { cp "$new" "$root/tmp/drover-agent.deb" && BUILDROOT=$root sh "$image/mkosi.postinst" final; }
mkosi_within() {
    cp "$new" "$root/tmp/drover-agent.deb" && cp "$image/mkosi.postinst" "$root/postinst" &&
        inside sh /postinst build && test -e "$root/tmp/drover-agent.deb" && inside sh /postinst final
    local status=$?
    rm -f "$root/postinst"
    return $status
}
built "mkosi" mkosi_beside
built "mkosi before 15" mkosi_within
# The commands of virt-customize that stand there, after its manual.
virt_customize() {
    cp "$new" "$work/drover-agent.deb"
    while read -r command words; do
        case $command in
            '' | '#'*) ;;
            copy-in) cp "$work/${words%%:*}" "$root${words#*:}/" ;;
            run-command) inside sh -c "$words" ;;
            delete) rm "$root$words" ;;
            truncate) : > "$root$words" ;;
            *) echo "no command $command is known here"; return 1 ;;
        esac || return 1
    done < "$image/virt-customize.commands"
}
built "virt-customize" virt_customize
holds "and the image has no id" test ! -s "$root/etc/machine-id"
packer() {
    cp "$new" "$root/tmp/drover-agent.deb"
    printf '#!/bin/sh\nexec "$@"\n' > "$root/bin/sudo" && chmod 755 "$root/bin/sudo"
    sed -n 's/^ *inline = //p' "$image/packer.pkr.hcl" |
        python3 -c 'import json, sys; print("\n".join(json.load(sys.stdin)))' | inside sh -e
    local status=$?
    rm -f "$root/bin/sudo"
    return $status
}
built "Packer" packer
holds "and the image has no id, either" test ! -s "$root/etc/machine-id"
if command -v cloud-init > /dev/null; then
    holds "cloud-init has nothing against its lines" cloud-init schema --config-file "$image/cloud-init.yaml"
else
    echo "SKIP cloud-init's own look at its lines: cloud-init is not installed"
fi

# --- OpenRC -----------------------------------------------------------------------------------------------
# From Debian's own package of it, unpacked over the system, which is not booted.
fetched=1
mkdir "$work/debs"
(cd "$work/debs" && apt-get -o APT::Sandbox::User=root download openrc libeinfo1 librc1) > "$work/apt.log" 2>&1 || fetched=
if [ -z "$fetched" ]; then
    echo "SKIP the agent under OpenRC: apt cannot fetch openrc"
else
    for deb in "$work"/debs/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -C "$root" --keep-directory-symlink -xf -; done
    cp "$agent" "$root/usr/bin/drover-agent"
    cp deploy/agent/drover-agent.openrc "$root/etc/init.d/drover-agent"
    chmod 755 "$root/etc/init.d/drover-agent"
    mkdir -p "$root/etc/conf.d"
    # There is no vsock device here.
    echo 'agent_args="--listen unix:/run/agent.sock"' > "$root/etc/conf.d/drover-agent"
    cat > "$root/try-openrc" << 'END'
set -eu
# What OpenRC makes at a boot.
for state in starting started stopping inactive failed hotplugged daemons options exclusive scheduled tmp; do
    mkdir -p "/run/openrc/$state"
done
touch /run/openrc/softlevel
agents() { pgrep -x drover-agent | sort; }
until_within() { tries=$1; shift; until "$@"; do tries=$((tries - 1)); [ "$tries" -gt 0 ] || return 1; sleep 0.1; done; }
# Nothing that it needs is there: this system has its file systems already.
rc-service --nodeps drover-agent start
until_within 300 test -S /run/agent.sock
rc-service drover-agent status
test "$(stat -c %a /run/drover-agent)" = 700
first=$(agents)
kill -KILL $first
another() { now=$(agents) && [ -n "$now" ] && [ "$now" != "$first" ]; }
until_within 300 another
rc-service --nodeps drover-agent stop
until_within 300 sh -c '! pgrep -x drover-agent'
END
    # shellcheck disable=SC2016
    holds "under OpenRC it starts, comes back when it is killed, and stops" \
        unshare --pid --fork --kill-child --mount --mount-proc="$root/proc" --propagation private sh -c \
        'mount --rbind /dev "$1/dev" && exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh /try-openrc' sh "$root"
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
