"""Prints one field of a JSON file (`-` for stdin) by its path, as nics.0.ipv4."""

import json
import sys

source, path = sys.argv[1:]
value = json.load(sys.stdin if source == "-" else open(source, encoding="utf-8"))
for step in path.split("."):
    value = value[int(step)] if isinstance(value, list) else value[step]
print(value)
