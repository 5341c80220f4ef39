"""Checks the log of `drover events -o json`: each VM's events are numbered 1, 2, 3 … to its last.

Waits until every VM that is named has its last event. Prints each VM's states in order.
"""

import argparse
import json
import time


def read(path):
    """Whole lines only: the writer may be in the middle of one."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file.read().split("\n")[:-1] if line]


def check(events):
    """Problems, and a line for each VM."""
    problems, lines = [], []
    for vm_id in dict.fromkeys(event["vm_id"] for event in events):
        own = [event for event in events if event["vm_id"] == vm_id]
        name, numbers = own[0]["name"], [event["seq"] for event in own]
        if numbers != list(range(1, len(own) + 1)):
            problems.append(f"{name}: numbers {numbers}")
        for before, after in zip(own, own[1:]):
            if after.get("previous") not in (None, before["state"]):
                problems.append(f"{name} #{after['seq']}: came from {after['previous']}, was {before['state']}")
            if before["last"]:
                problems.append(f"{name} #{after['seq']}: comes after the last event")
        states = [state for i, state in enumerate(e["state"] for e in own) if i == 0 or own[i - 1]["state"] != state]
        gone = "gone" if own[-1]["last"] else "still there"
        lines.append(f"{name}: {len(own)} events, {' > '.join(states)}, {gone}")
    return problems, lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log")
    parser.add_argument("--vm", action="append", default=[], help="a VM that must be gone")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds")
    args = parser.parse_args()
    deadline = time.monotonic() + args.wait
    while True:
        events = read(args.log)
        missing = set(args.vm) - {event["name"] for event in events if event["last"]}
        if not missing or time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    problems, lines = check(events)
    problems += [f"{name}: its last event did not come" for name in sorted(missing)]
    print("\n".join(lines + problems))
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
