"""Creates a VM as any program on the bus can: one MessagePack request, one reply.

Needs nats-py and msgpack. The request id makes repeating safe: the same id gives the same reply and
no second VM. So the request is simply sent again when nothing comes back.
"""

import argparse
import asyncio
import json
import os
import sys
import time

import msgpack
import nats
from nats.errors import NoRespondersError, TimeoutError

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid():
    """48 bits of time and 80 random bits, as 26 characters."""
    value = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    return "".join(CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))


async def create(args):
    with open(args.client, encoding="utf-8") as file:
        client = json.load(file)
    connection = await nats.connect(client["url"], user=client["user"], password=client["password"])
    request_id = ulid()
    body = {"name": args.name, "spec": {"labels": {"made-by": "python"}}}
    if args.wait:
        body["wait"] = args.wait
    subject = f"{args.root}.v1.cmd.{args.namespace}.vm.create"
    deadline = time.monotonic() + args.deadline
    try:
        while (left := deadline - time.monotonic()) > 0:
            headers = {
                "Content-Type": "application/msgpack",
                "Drover-Request-Id": request_id,
                "Drover-Deadline-Ms": str(int(left * 1000)),
            }
            try:
                # Longer than the host's own deadline, so that its error comes through.
                reply = await connection.request(subject, msgpack.packb(body), left + 1, headers=headers)
            except (TimeoutError, NoRespondersError) as error:
                print(f"no answer ({error}); the same request again", file=sys.stderr)
                await asyncio.sleep(0.5)
                continue
            return request_id, reply.headers or {}, msgpack.unpackb(reply.data)
    finally:
        await connection.close()
    raise SystemExit(f"no answer within {args.deadline} s; request {request_id}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--client", required=True, help="client.json of `drover dev`")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--root", default="drover")
    parser.add_argument("--wait", choices=["running", "agent"])
    parser.add_argument("--deadline", type=float, default=100.0)
    request_id, headers, reply = asyncio.run(create(parser.parse_args()))
    if "Nats-Service-Error-Code" in headers:
        raise SystemExit(f"{reply['code']}: {reply['message']} {reply.get('details', '')}")
    vm = reply["vm"]
    print(f"request {request_id}")
    address = vm["nics"][0]["ipv4"] if vm["nics"] else "no address"
    print(f"reply   {vm['name']} is {vm['state']}, agent {vm['agent']['state']}, {address}, vm_id {vm['vm_id']}")


if __name__ == "__main__":
    main()
