# shellcheck shell=sh
# This machine's own mirror of Debian, for scripts that build disks of its packages; they have `say`.

# mirror RELEASE : the file that names the mirror, and the keys, that this machine uses itself; nothing if there is none.
mirror() {
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        if grep -qs "$1" "$file"; then
            echo "$file"
            return
        fi
    done
}

# unreached LOG : ends the script with 75 if the log tells that the mirror cannot be reached.
unreached() {
    if grep -qE 'Could not (resolve|connect)|Unable to connect|Connection (timed out|refused)|Temporary failure' "$1"; then
        say "the mirror of Debian's packages cannot be reached; see $1"
        exit 75
    fi
}
