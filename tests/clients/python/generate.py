"""Writes `src/drover_client/_contract.py` from the published contract; with `--check` it only compares."""

import json
import keyword
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
CONTRACT = HERE.parents[2] / "schemas" / "asyncapi.json"
TARGET = HERE / "src" / "drover_client" / "_contract.py"

PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def name_of(ref):
    return ref.rsplit("/", 1)[1]


def union(parts):
    """Of hints; literals become one."""
    parts = list(dict.fromkeys(parts))
    literals = [part.removeprefix("Literal[").removesuffix("]") for part in parts if part.startswith("Literal[")]
    others = [part for part in parts if not part.startswith("Literal[")]
    return " | ".join(([f"Literal[{', '.join(literals)}]"] if literals else []) + others)


def literal(values):
    return f"Literal[{', '.join(map(json.dumps, values))}]"


class Types:
    """The bodies as type hints; objects become classes on the way."""

    def __init__(self, schemas):
        self.classes = []
        self.aliases = []
        for name, schema in schemas.items():
            if name.endswith("Headers"):
                continue
            hint = "bytes" if name == "Blob" else self.hint(schema, name)
            if hint != name:
                self.aliases.append((name, hint, schema.get("description", "")))

    def hint(self, schema, name):
        """The hint of a schema; `name` is what a class of it would be called."""
        if schema is True:
            return "Any"
        if "$ref" in schema:
            return name_of(schema["$ref"])
        if "const" in schema:
            return literal([schema["const"]])
        if "enum" in schema:
            return literal(schema["enum"])
        if "allOf" in schema:
            return self.hint(schema["allOf"][0], name)
        if "anyOf" in schema:
            return union(self.hint(part, name) for part in schema["anyOf"])
        if "oneOf" in schema:
            # Readers must take values of an open enumeration that they do not know.
            parts = [self.hint(part, f"{name}{number}") for number, part in enumerate(schema["oneOf"], 1)]
            return "str" if schema.get("x-drover-open") else union(parts)
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return union(self.hint({**schema, "type": kind}, name) for kind in kinds)
        if kinds == "array":
            return f"list[{self.hint(schema.get('items', True), name + 'Item')}]"
        if kinds == "object" and ("properties" in schema or schema.get("additionalProperties") is False):
            self.object(schema, name)
            return name
        if kinds == "object":
            return f"dict[str, {self.hint(schema.get('additionalProperties', True), name + 'Value')}]"
        return PLAIN.get(kinds, "Any")

    def object(self, schema, name):
        required = schema.get("required", [])
        fields = []
        for field, inner in sorted(schema.get("properties", {}).items()):
            assert field.isidentifier() and not keyword.iskeyword(field), field
            hint = self.hint(inner, name + field.title().replace("_", ""))
            doc = inner.get("description", "") if isinstance(inner, dict) else ""
            fields.append((field, hint if field in required else f"NotRequired[{hint}]", doc))
        self.classes.append((name, schema.get("description", ""), fields))


def one_line(text):
    return " ".join(text.split())


def verbs(document):
    for name, operation in sorted(document["operations"].items()):
        if operation["action"] != "receive" or "reply" not in operation:
            continue
        channel = document["channels"][name]
        stream = operation.get("x-drover-stream")
        yield name, channel["address"].removeprefix("drover.v1."), operation["x-drover-request-id"], stream


def channels(names):
    return f"({''.join(f'{json.dumps(name)}, ' for name in names).rstrip(' ')})"


def generate():
    document = json.loads(CONTRACT.read_text(encoding="utf-8"))
    types = Types(document["components"]["schemas"])
    out = [
        '"""Made from the published contract by `generate.py`; do not edit."""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import Any, Literal, NamedTuple, NotRequired, TypedDict",
        "",
        "",
        "class Stream(NamedTuple):",
        '    """The channels of a stream."""',
        "",
        "    client: tuple[str, ...]",
        "    host: tuple[str, ...]",
        "",
        "",
        "class Verb(NamedTuple):",
        '    """Where a verb is asked for, without the root; whether it carries a request id; its stream."""',
        "",
        "    address: str",
        "    has_id: bool",
        "    stream: Stream | None",
        "",
        "",
        "VERBS: dict[str, Verb] = {",
    ]
    for name, address, has_id, stream in verbs(document):
        shape = "None"
        if stream:
            shape = f"Stream({channels(stream['client_channels'])}, {channels(stream['host_channels'])})"
        out.append(f'    "{name}": Verb("{address}", {has_id}, {shape}),')
    out.append("}")
    for name, doc, fields in sorted(types.classes):
        out += ["", "", f"class {name}(TypedDict):"]
        if doc:
            out.append(f'    """{one_line(doc)}"""')
        for field, hint, text in fields:
            out += [f"    # {one_line(text)}"] if text else []
            out.append(f"    {field}: {hint}")
        if not doc and not fields:
            out.append("    pass")
    out.append("")
    for name, hint, doc in sorted(types.aliases):
        out += [""] + ([f"# {one_line(doc)}"] if doc else []) + [f"{name} = {hint}"]
    return "\n".join(out) + "\n"


def main():
    made = generate()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text(encoding="utf-8") != made:
            sys.exit(f"{TARGET.name} is out of date: run {pathlib.Path(__file__).name}")
    else:
        TARGET.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
