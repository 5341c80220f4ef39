"""Checks that nothing is left of deleted VMs: run in the network namespace of their host.

Takes what `drover vm get -o json` said of each VM while it lived, and looks for its processes, TAP
devices, run directory, sockets, disks, cgroups, firewall elements, claim and address lease. Waits for
what is released later. Prints one line for each kind of thing.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import time


def output(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def processes(vms, _):
    """By the VM's id on the command line or in the environment, and by its old process id."""
    found, ids = [], [vm["vm_id"].lower().encode() for vm in vms]
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().lower()
            text = command + b"\0" + (entry / "environ").read_bytes().lower()
        except OSError:
            continue
        if any(vm_id in text for vm_id in ids):
            found.append(f"{entry.name} {command.replace(bytes(1), b' ').decode(errors='replace')[:80]}")
    return found


def links(vms, _):
    there = {link["ifname"] for link in json.loads(output("ip", "-j", "link") or "[]")}
    return [nic["tap"] for vm in vms for nic in vm["nics"] if nic["tap"] in there]


def below(roots, ids):
    found = []
    for root in roots:
        for folder, folders, files in os.walk(root):
            # What is gone may be named in journals and events, never by a file or folder.
            found += [os.path.join(folder, n) for n in folders + files if any(i in n.lower() for i in ids)]
    return found


def files(vms, settings):
    roots = [settings["run_dir"], os.path.join(settings["state_dir"], "disks")]
    return below(roots, [vm["vm_id"].lower() for vm in vms])


def sockets(vms, settings):
    table = pathlib.Path("/proc/net/unix").read_text(encoding="utf-8")
    ids = [vm["vm_id"].lower() for vm in vms]
    return [line.split()[-1] for line in table.splitlines() if any(i in line.lower() for i in ids)]


def cgroups(vms, _):
    return below(["/sys/fs/cgroup"], [vm["vm_id"].lower() for vm in vms])


def elements(vms, _):
    rules = output("nft", "list", "ruleset")
    marks = [m for vm in vms for nic in vm["nics"] for m in (nic["tap"], nic["mac"], nic["ipv4"])]
    return [mark for mark in marks if re.search(rf"(?<![\w.:]){re.escape(mark)}(?![\w.:])", rules)]


def leases(_, settings):
    info = json.loads(output(settings["drover"], "host", "get", "-o", "json") or "{}")
    capacity = info.get("capacity")
    if capacity is None:
        return ["the host does not answer"]
    names = ("vms", "cpus_used", "memory_used_bytes", "addresses_used")
    return [f"{name}: {capacity[name]}" for name in names if capacity[name]]


def names(vms, settings):
    listed = json.loads(output(settings["drover"], "vm", "ls", "-o", "json") or "null")
    if listed is None:
        return ["the list cannot be had"]
    return [vm["name"] for vm in listed if vm["name"] in {v["name"] for v in vms}]


CHECKS = {
    "process": processes,
    "TAP": links,
    "socket": sockets,
    "run file or disk": files,
    "cgroup": cgroups,
    "nft element": elements,
    "lease or promise": leases,
    "name in the list": names,
}


def setting(text, key):
    return re.search(rf"^{key}: *[\"']?([^\"'\n]+)", text, re.MULTILINE).group(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vms", nargs="+", help="files with the status of each VM")
    parser.add_argument("--drover", required=True, help="the drover program")
    parser.add_argument("--settings", required=True, help="host.yaml of `drover dev`")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds")
    args = parser.parse_args()
    vms = [json.loads(pathlib.Path(path).read_text(encoding="utf-8")) for path in args.vms]
    text = pathlib.Path(args.settings).read_text(encoding="utf-8")
    settings = {key: setting(text, key) for key in ("run_dir", "state_dir")} | {"drover": args.drover}
    deadline, left = time.monotonic() + args.wait, True
    while left:
        found = {kind: check(vms, settings) for kind, check in CHECKS.items()}
        left = {kind: things for kind, things in found.items() if things}
        if time.monotonic() >= deadline:
            break
        if left:
            time.sleep(0.2)
    clean = [kind for kind in CHECKS if kind not in left]
    print(f"no {', no '.join(clean)}" if clean else "nothing is clean")
    for kind, things in left.items():
        print(f"LEFT {kind}: {'; '.join(things)}")
    raise SystemExit(1 if left else 0)


if __name__ == "__main__":
    main()
