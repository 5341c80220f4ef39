"""Runs `client.test.js` on a live host with guests of processes."""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))

import harness

PORT = 14444


def main():
    harness.in_own_network()
    host = harness.Host(PORT)
    try:
        host.start_nats()
        host.start()
        environment = dict(os.environ, DROVER_URL=f"nats://127.0.0.1:{PORT}")
        command = ["node", "--test", "--test-reporter", "spec", "client.test.js"]
        return subprocess.run(command, cwd=HERE, env=environment, check=False, timeout=300).returncode
    finally:
        host.end()


if __name__ == "__main__":
    sys.exit(main())
