"""Publishes events over the agent's socket, as any program of a guest may: the numbers from 1 on, each until it is taken.

An answer may be lost with the agent that gave it. So every attempt has a number of its own, and those that were taken for
certain are written down.
"""

import json
import socket
import sys
import time

SOCKET, ACCEPTED, STOP, STOPPED = "/run/drover-agent.sock", "/tmp/accepted", "/tmp/stop", "/tmp/stopped"


def stopped():
    try:
        open(STOP).close()
        return True
    except OSError:
        return False


def main():
    attempt, lines = 0, None
    with open(ACCEPTED, "w", buffering=1) as accepted:
        while not stopped():
            attempt += 1
            event = {"type": "load.step", "data": {"attempt": attempt, "uid": 0}}
            try:
                if lines is None:
                    stream = socket.socket(socket.AF_UNIX)
                    stream.connect(SOCKET)
                    lines = stream.makefile("rw")
                lines.write(json.dumps(event) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
            except (OSError, ValueError):
                # The agent is away.
                lines = None
                time.sleep(0.05)
                continue
            if answer["accepted"]:
                accepted.write(f"{attempt}\n")
            elif answer["error"]["code"] != "resource_exhausted":
                sys.exit(json.dumps(answer))
            # Within what one user may publish.
            time.sleep(0.12)
    open(STOPPED, "w").close()


main()
