"""The client, with a guest that runs Debian: tests/tests/debian.rs boots it and says where it is."""

import asyncio
import hashlib
import io
import json
import os
import sys
import tarfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "src"))

from drover_client import Client, DroverError

URL, VM = os.environ.get("DROVER_URL"), os.environ.get("DROVER_VM", "")


@unittest.skipUnless(URL and VM, "tests/tests/debian.rs runs it")
class OnDebian(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.drover = await self.enterAsyncContext(Client([URL]))

    async def test_commands(self):
        result = await self.drover.exec(VM, ["sh", "-c", "id -un; echo no >&2; exit 3"], user="debian")
        self.assertEqual((result["exit_code"], result["stdout"], result["stderr"]), (3, b"debian\n", b"no\n"))
        async with self.drover.exec_stream(VM, ["sha256sum"]) as process:
            data = os.urandom(400_000)
            await process.write("stdin", data)
            process.close("stdin")
            out = b"".join([chunk async for chunk in process.read("stdout")])
            self.assertEqual(out.decode().split()[0], hashlib.sha256(data).hexdigest())
            self.assertEqual((await process.result())["exit_code"], 0)

    async def test_detached_commands(self):
        run = await self.drover.detach(VM, ["sh", "-c", "echo out; echo err >&2; exit 4"])
        async with self.drover.attach(VM, run["run"]) as (_, stream):
            out = b"".join([chunk async for chunk in stream.read("stdout")])
            err = b"".join([chunk async for chunk in stream.read("stderr")])
            ended = (await stream.result())["result"]
        self.assertEqual((out, err, ended["exit_code"]), (b"out\n", b"err\n", 4))
        run = await self.drover.detach(VM, ["sleep", "1000"])
        await self.drover.kill(VM, run["run"], 9)
        while (now := next(info for info in await self.drover.runs(VM) if info["run"] == run["run"]))["state"] != "ended":
            await asyncio.sleep(0.05)
        self.assertEqual(now["result"]["signal"], 9)

    async def test_files_and_folders(self):
        data = os.urandom(1_000_000)
        put = await self.drover.put(VM, "/home/debian/data", data, mode=0o640, owner="debian")
        self.assertEqual(put["sha256"], hashlib.sha256(data).hexdigest())
        told = await self.drover.exec(VM, ["stat", "-c", "%U %a", "/home/debian/data"])
        self.assertEqual(told["stdout"], b"debian 640\n")
        back, result = await self.drover.fetch(VM, "/home/debian/data")
        self.assertEqual((back == data, result["sha256"]), (True, put["sha256"]))
        folder, _ = await self.drover.pack(VM, "/etc/ssh")
        self.assertIn("sshd_config", tarfile.open(fileobj=io.BytesIO(folder)).getnames())

    async def test_disks_that_stand_still(self):
        frozen = await self.drover.freeze(VM, timeout_ms=60_000)
        self.assertEqual([(mount["mount"], mount["fs_type"]) for mount in frozen["frozen"]], [("/", "ext4")])
        self.assertEqual([mount["mount"] for mount in (await self.drover.frozen(VM))["frozen"]], ["/"])
        self.assertEqual((await self.drover.thaw(VM))["thawed"], ["/"])
        with self.assertRaises(DroverError) as caught:
            await self.drover.thaw(VM)
        self.assertEqual(caught.exception.code, "conflict")

    async def test_what_it_is_and_what_runs(self):
        info = await self.drover.info(VM)
        self.assertEqual((info["os_id"], info["hostname"]), ("debian", VM))
        listed = await self.drover.processes(VM, sort="pid", args=True)
        first = listed["processes"][0]
        self.assertEqual((first["pid"], first["name"], first["uid"]), (1, "systemd", 0))
        self.assertIn("sshd", [process["name"] for process in listed["processes"]])

    async def test_another_agent(self):
        with open(os.environ["DROVER_AGENT"], "rb") as file:
            program = file.read()
        async with self.drover.exec_stream(VM, ["cat"]) as process:
            await process.write("stdin", b"before ")
            with self.assertRaises(DroverError) as caught:
                await self.drover.upgrade(VM, program, version="99.0.0")
            self.assertEqual(caught.exception.code, "invalid_argument")
            told = await self.drover.upgrade(VM, program)
            self.assertEqual((told["path"], told["going_on"]), ("/usr/bin/drover-agent", 1))
            await process.write("stdin", b"after")
            process.close("stdin")
            self.assertEqual(b"".join([chunk async for chunk in process.read("stdout")]), b"before after")
            self.assertEqual((await process.result())["exit_code"], 0)

    async def test_becoming_another_guest(self):
        async def identity():
            told = await self.drover.exec(VM, ["sh", "-c", "cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub"])
            machine_id, key = told["stdout"].decode().splitlines()
            return machine_id, key.split()[1]

        nic = (await self.drover.get(VM))["nics"][0]

        async def offered():
            scan = ["ssh-keyscan", "-T", "60", "-t", "ed25519", nic["ipv4"]]
            pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
            async with asyncio.timeout(90):
                while True:
                    scanning = await asyncio.create_subprocess_exec(*scan, stdout=pipe, stderr=nowhere)
                    said = (await scanning.communicate())[0].decode().split()
                    # It listens to nobody for the moment in which it takes its keys.
                    if said:
                        return said[2]

        before = await identity()
        self.assertEqual(await offered(), before[1])
        done = await self.drover.identity(VM, hostname="snake")
        outcomes = {part["part"]: part["outcome"] for part in done["parts"]}
        self.assertEqual({outcomes[part] for part in ("rng", "machine_id", "hostname", "ssh_host_keys")}, {"done"})
        after = await identity()
        self.assertTrue(before[0] != after[0] and before[1] != after[1], (before, after))
        self.assertEqual((await self.drover.info(VM))["hostname"], "snake")
        self.assertEqual(await offered(), after[1])
        await self.drover.identity(VM, hostname=VM, keep=["machine_id", "ssh_host_keys"])
        self.assertEqual(await identity(), after)

    async def test_events_of_an_ordinary_user(self):
        data = json.dumps({"number": 7})
        said = ["drover-agent", "emit", "python.test", "--data", data, "--wait", "--timeout", "60"]
        self.assertEqual((await self.drover.exec(VM, said, user="debian", timeout_ms=70_000))["exit_code"], 0)
        told = [stored["event"] async for stored in self.drover.events(vm=VM, kinds=["agent"])]
        inside = [event["agent_event"] for event in told if "agent_event" in event]
        heard = [(event["uid"], event["data"]) for event in inside if event["type"] == "python.test"]
        self.assertEqual(heard, [(1000, {"number": 7})])


if __name__ == "__main__":
    unittest.main()
