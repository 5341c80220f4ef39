#!/usr/bin/env python3
"""Prints which messages of the published contract the tests have shown, and which not.

Usage: tests/seen.py FOLDER

FOLDER has a file of each observer: lines of a count, a tab and a kind.
"""

import collections
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# Kinds that the default suites do not show, and why.
REASONS = {
    "error internal": "a fault of drover, for which no test knows a way",
    "event.vm progress": "no operation tells of its steps yet",
    "event.vm agent-dropped": "programs of a guest cannot publish events yet",
}


def known_values(schema):
    """Values of an enumeration, without what only a host says that is too old for another's."""
    values = [value for value in schema["oneOf"] if "too old to know" not in value["description"]]
    return [value["const"] for value in values]


def kinds_of(document):
    """Every kind of message that the document has."""
    schemas = document["components"]["schemas"]
    for name, operation in document["operations"].items():
        if "reply" in operation:
            yield from (f"{name} request", f"{name} reply")
        if "x-drover-stream" in operation:
            yield from (f"{name} frame of a client", f"{name} frame of a host", f"{name} result")
    yield from (f"event.vm {kind}" for kind in known_values(schemas["VmEventKind"]))
    yield from (f"event.host {kind}" for kind in known_values(schemas["HostEventKind"]))
    yield from (f"audit.host {kind}" for kind in known_values(schemas["AuditKind"]) if kind != "denied")
    yield from ("audit.bus denied", "event.rejected rejected", "metric.host message", "metric.namespace message")
    yield from (f"error {code}" for code in known_values(schemas["ErrorCode"]))


def main():
    folder = sys.argv[1]
    with open(os.path.join(HERE, "..", "schemas", "asyncapi.json"), encoding="utf-8") as file:
        kinds = list(kinds_of(json.load(file)))
    seen = collections.Counter()
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            for line in file:
                count, kind = line.rstrip("\n").split("\t")
                seen[kind] += int(count)
    # One line for what is about the same verb.
    rows = collections.defaultdict(dict)
    for kind in sorted(set(kinds) | set(seen)):
        about, _, what = kind.partition(" ")
        rows[about][what or "message"] = seen[kind]
    unobserved = sorted(rows.pop("unobserved", {}))
    for about, counts in rows.items():
        told = ", ".join(f"{count} {what}" for what, count in counts.items())
        print(f"  {about:<22} {told}")
    ours = sum(count for kind, count in seen.items() if kind.partition(" ")[0] not in ("error", "connection", "unobserved"))
    unseen = [kind for kind in kinds if not seen[kind]]
    print(f"  {ours} messages; {len(kinds) - len(unseen)} of {len(kinds)} kinds")
    for test in unobserved:
        print(f"  not observed: {test}")
    for kind in unseen:
        print(f"  not shown: {kind}: {REASONS.get(kind, 'no reason is given')}")


if __name__ == "__main__":
    main()
