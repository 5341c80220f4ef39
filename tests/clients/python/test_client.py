"""The client, on a live host with guests of processes. It knows the published contract and nothing else."""

import asyncio
import hashlib
import io
import json
import os
import ssl
import sys
import tarfile
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "src"), os.path.join(HERE, "..", "..", "python")]

import harness
from drover_client import Client, DroverError, NoOutcome, new_request_id

PORT = 14333
# A host that is there already; without it each test has one of its own.
URL = os.environ.get("DROVER_URL")
# The way into a bus that asks who comes: a user, its password, and files with certificates.
LOGIN = json.loads(os.environ.get("DROVER_LOGIN", "{}"))


def login():
    if not LOGIN:
        return {}
    tls = ssl.create_default_context(cafile=LOGIN["ca"])
    tls.load_cert_chain(LOGIN["cert"], LOGIN["key"])
    user = LOGIN["user"]
    return {"user": user, "password": LOGIN["password"], "inbox_prefix": f"_INBOX.{user}", "tls": tls}


class OnAHost(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        asyncio.get_running_loop().set_debug(False)
        if not URL:
            self.host = harness.Host(PORT)
            self.addCleanup(self.host.end)
            self.host.start_nats()
            self.host.start()
        urls = (URL or f"nats://127.0.0.1:{PORT}").split(",")
        self.drover = await self.enterAsyncContext(Client(urls, **login()))
        # Who comes in as a user of a namespace may not ask hosts.
        if not LOGIN:
            self.assertEqual((await self.ready())["phase"], "ready")

    async def ready(self):
        while (info := await self.drover.host("h1"))["phase"] != "ready":
            await asyncio.sleep(0.05)
        return info

    async def refused(self, code, awaitable):
        with self.assertRaises(DroverError) as caught:
            await awaitable
        self.assertEqual(caught.exception.code, code)
        return caught.exception


class TheMainJob(OnAHost):
    async def test_the_main_job(self):
        drover = self.drover
        vm = await drover.create("web", {"labels": {"a": "b"}, "disks": [{"size": "64MiB"}]}, wait="agent")
        self.assertEqual((vm["state"], vm["agent"]["state"]), ("running", "ready"))
        result = await drover.exec("web", ["sh", "-c", "echo hi; echo no >&2; exit 3"])
        self.assertEqual((result["exit_code"], result["stdout"], result["stderr"]), (3, b"hi\n", b"no\n"))
        # A program may take longer than one attempt of the client waits.
        self.assertEqual((await drover.exec("web", ["true"], timeout_ms=60_000))["exit_code"], 0)
        put = await drover.put("web", "/tmp/there", b"and back")
        back, got = await drover.fetch("web", "/tmp/there")
        # Who owns it and since when is told of what was read.
        self.assertEqual((back, {key: got[key] for key in put}), (b"and back", put))
        self.assertEqual((got["uid"], got["gid"]), (0, 0))
        info, health = await drover.info("web"), await drover.health("web")
        self.assertEqual((info["cpus"] > 0, health["memory_total_bytes"] > 0), (True, True))
        listed = await drover.processes("web", sort="pid", args=True)
        self.assertEqual((listed["processes"][0]["pid"], listed["processes"][0]["user"]), (1, "root"))
        seen = b""
        async with drover.console("web") as console:
            await console.write("stdin", b"\n")
            async for chunk in console.read("stdout"):
                seen += chunk
                if b"drover-agent" in seen:
                    break
        self.assertIn(b"drover-agent", (await drover.logs("web"))["data"])
        self.assertEqual([vm["name"] async for vm in drover.vms()], ["web"])
        self.assertEqual((await drover.change("pause", "web"))["state"], "paused")
        self.assertEqual((await drover.change("resume", "web"))["state"], "running")
        self.assertEqual((await drover.change("grow", "web", disk="disk0", size_bytes=1 << 30))["revision"], 2)
        self.assertEqual((await drover.get("web"))["disks"][0]["size_bytes"], 1 << 30)
        await self.refused("invalid_argument", drover.change("grow", "web", disk="disk0", size_bytes=1 << 20))
        self.assertEqual((await drover.change("shutdown", "web"))["state"], "stopped")
        self.assertEqual((await drover.change("start", "web", wait="agent"))["incarnation"], 2)
        self.assertTrue((await drover.explain("web"))["findings"])
        await drover.delete("web")
        self.assertEqual((await drover.lookup("web"))["found"], "gone")
        await self.refused("not_found", drover.get("web"))
        events = [event["event"] async for event in drover.events(vm="web")]
        self.assertEqual([event["seq"] for event in events], list(range(1, len(events) + 1)))
        self.assertTrue(events[-1]["last"])

    async def test_checks_run_in_the_guest(self):
        drover = self.drover
        check = {"name": "up", "argv": ["test", "-e", "/tmp/up"], "interval_ms": 1_000, "failures": 1}
        threshold = {"name": "some", "of": "memory", "above": 1, "for_ms": 1_000}
        await drover.create("c", {"agent": {"checks": [check], "thresholds": [threshold]}}, wait="agent")

        async def status(wanted):
            while True:
                health = await drover.health("c")
                found = health.get("checks", []) + health.get("thresholds", [])
                if [one["status"] for one in found] == [wanted, "exceeded"]:
                    return health
                await asyncio.sleep(0.1)

        health = await asyncio.wait_for(status("failing"), 60)
        self.assertEqual((health["status"], health["checks"][0]["reason"]), ("critical", "it exited with 1"))
        await drover.put("c", "/tmp/up", b"")
        self.assertEqual((await asyncio.wait_for(status("ok"), 60))["checks"][0]["failures"], 0)
        await drover.delete("c")

    async def test_how_fast_a_guest_may_be_and_what_it_sent(self):
        drover = self.drover
        limits = {"send_bits_per_second": 8_000_000}
        vm = await drover.create("n", {"nics": [{"limits": limits}]}, wait="agent")
        self.assertEqual(vm["nics"][0]["limits"], limits)
        stats = await drover.stats("n")
        self.assertEqual((stats["vm_id"], [nic["tap"] for nic in stats["nics"]]), (vm["vm_id"], [vm["nics"][0]["tap"]]))
        self.assertEqual([one["name"] for one in stats["guest"]], ["eth0"])
        self.assertEqual([key for key in stats["nics"][0] if key.startswith("over_")], ["over_send_packets"])
        vm = await drover.limit("n", {"receive_bits_per_second": 9_000_000})
        self.assertEqual(vm["nics"][0]["limits"], {"receive_bits_per_second": 9_000_000})
        await self.refused("invalid_argument", drover.limit("n", {"send_bits_per_second": 9}))
        vm = await drover.limit("n", {})
        self.assertNotIn("limits", vm["nics"][0])
        await drover.change("stop", "n", force=True)
        stats = await drover.stats("n")
        self.assertNotIn("nics", stats)
        self.assertIn("stopped", stats["guest_silent"])
        await drover.delete("n")

    async def test_errors_say_what_to_do(self):
        error = await self.refused("invalid_argument", self.drover.create("a", {"memory_bytes": 3}))
        self.assertIn("64 MiB", error.message)
        await self.refused("not_found", self.drover.get("nobody"))
        checked = await self.drover.validate({"cpus": 2})
        self.assertEqual(checked["spec"]["cpus"], 2)
        origins = {value["field"]: value["origin"] for value in checked["values"]}
        self.assertEqual(origins["cpus"], "request")
        self.assertRegex(origins["memory_bytes"], r"^built-in:linux-default\.yaml:\d+$|^host:")

    async def test_templates_are_told_of(self):
        self.assertIn("linux-microvm", [template["name"] for template in await self.drover.templates()])
        template = await self.drover.template("linux-microvm")
        self.assertEqual(template["spec"]["memory_bytes"], 128 << 20)
        self.assertTrue(template["values"][0]["origin"])
        await self.refused("invalid_argument", self.drover.template("nobody"))

    async def test_streams_carry_what_they_should(self):
        drover = self.drover
        await drover.create("s", wait="agent")
        data = os.urandom(3_000_000)
        put = await drover.put("s", "/tmp/data", data)
        self.assertEqual(put["sha256"], hashlib.sha256(data).hexdigest())
        back, result = await drover.fetch("s", "/tmp/data")
        self.assertEqual((back == data, result["sha256"]), (True, put["sha256"]))
        async with drover.exec_stream("s", ["sh", "-c", "cat; echo done >&2; exit 4"]) as process:
            await process.write("stdin", data[:700_000])
            process.close("stdin")
            out = b"".join([chunk async for chunk in process.read("stdout")])
            err = b"".join([chunk async for chunk in process.read("stderr")])
            self.assertEqual((out == data[:700_000], err), (True, b"done\n"))
            self.assertEqual((await process.result())["exit_code"], 4)
        # Leaving early ends what runs.
        async with drover.exec_stream("s", ["sleep", "1000"]):
            pass
        count = ["sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done | grep -c '^sleep 1000' || true"]
        while (await drover.exec("s", count))["stdout"] != b"0\n":
            await asyncio.sleep(0.05)
        with self.assertRaises(DroverError):
            await drover.fetch("s", "/nothing/here")
        await drover.delete("s")

    async def test_what_a_program_of_a_guest_says_is_heard(self):
        drover = self.drover
        await drover.create("e", wait="agent")
        heard = []

        async def hear():
            async for stored in drover.events(vm="e", kinds=["agent"], follow=True):
                if said := stored["event"].get("agent_event"):
                    heard.append((said["type"], said["uid"], said["data"]))
                    if said["type"] == "app.down":
                        return

        hears = asyncio.create_task(hear())
        for number, kind in enumerate(["app.up", "app.works", "app.down"]):
            said = ["drover-agent", "emit", kind, "--data", json.dumps({"number": number})]
            self.assertEqual((await drover.exec("e", said))["exit_code"], 0)
        await asyncio.wait_for(hears, 60)
        kinds = ["app.up", "app.works", "app.down"]
        self.assertEqual(heard, [(kind, 0, {"number": number}) for number, kind in enumerate(kinds)])
        await drover.delete("e")

    async def test_a_folder_is_an_archive_that_tar_reads_and_writes(self):
        drover = self.drover
        await drover.create("f", wait="agent")
        # A name and a link that no plain header holds, and a second name of a file.
        long, bytes_ = "n" * 180, os.urandom(300_000)
        out = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=out, mode="w") as archive:
            with open(f"{folder}/data", "wb") as file:
                file.write(bytes_)
            os.makedirs(f"{folder}/{long}/in")
            os.link(f"{folder}/data", f"{folder}/{long}/again")
            os.symlink("x" * 180, f"{folder}/{long}/in/link")
            archive.add(folder, arcname=".")
        put = await drover.unpack("f", "/tmp/folder", out.getvalue(), len(bytes_))
        self.assertEqual((put["entries"], put["size_bytes"], put["skipped"]), (5, len(bytes_), 0))
        self.assertEqual(put["sha256"], hashlib.sha256(out.getvalue()).hexdigest())
        back, got = await drover.pack("f", "/tmp/folder")
        self.assertEqual(got["sha256"], hashlib.sha256(back).hexdigest())
        with tarfile.open(fileobj=io.BytesIO(back)) as archive:
            names = {member.name.removeprefix("./"): member for member in archive.getmembers()}
            self.assertEqual(set(names), {".", "data", long, f"{long}/in", f"{long}/again", f"{long}/in/link"})
            self.assertEqual(archive.extractfile(names["data"]).read(), bytes_)
            self.assertEqual(names[f"{long}/in/link"].linkname, "x" * 180)
        with self.assertRaises(DroverError) as refused:
            await drover.unpack("f", "/tmp/other", b"no archive" * 100, 1)
        self.assertEqual(refused.exception.code, "invalid_argument")
        await drover.delete("f")

    async def test_a_program_has_a_terminal_and_gets_signals(self):
        drover = self.drover
        await drover.create("t", wait="agent")
        script = "trap 'stty size; exit 6' USR1; stty size; echo $TERM; while :; do :; done"
        body = {"tty": True, "size": {"rows": 30, "cols": 100}}
        async with drover.exec_stream("t", ["sh", "-c", script], **body) as process:
            out, told = b"", False
            async for chunk in process.read("stdout"):
                out += chunk
                if b"xterm" in out and not told:
                    told = True
                    await process.control(rows_cols=(50, 132))
                    await process.control(signal=10)
            result = await process.result()
        self.assertEqual((out, result["exit_code"]), (b"30 100\r\nxterm\r\n50 132\r\n", 6))
        self.assertTrue(result["max_rss_kib"] > 0 and result["ended_unix_ms"] >= result["started_unix_ms"] > 0)


@unittest.skipIf(URL, "the host is not ours to break")
class WhatBreaks(OnAHost):
    async def test_a_program_goes_on_while_the_daemon_is_killed(self):
        drover = self.drover
        await drover.create("d", wait="agent")
        script = "echo one; until [ -e /tmp/go ]; do sleep 0.01; done; echo two; echo no >&2; exit 7"
        request_id = new_request_id()
        run = await drover.detach("d", ["sh", "-c", script], request_id=request_id)
        self.assertEqual((run["run"], run["state"]), (request_id, "running"))
        async with drover.attach("d", request_id) as (_, stream):
            first = await anext(stream.read("stdout"))
        self.assertEqual(first, b"one\n")
        self.host.kill()
        self.host.start()
        await self.ready()
        # The host answers before it has all of its guests again.
        while (await drover.get("d"))["agent"]["state"] != "ready":
            await asyncio.sleep(0.05)
        self.assertEqual([(r["run"], r["pid"]) for r in await drover.runs("d")], [(request_id, run["pid"])])
        async with drover.attach("d", request_id, stdout_off=len(first)) as (reply, stream):
            self.assertEqual((reply["stdout"]["off"], reply["run"]["state"]), (4, "running"))
            await drover.exec("d", ["touch", "/tmp/go"])
            out = b"".join([chunk async for chunk in stream.read("stdout")])
            err = b"".join([chunk async for chunk in stream.read("stderr")])
            ended = await stream.result()
        self.assertEqual((out, err, ended["state"], ended["result"]["exit_code"]), (b"two\n", b"no\n", "ended", 7))
        # What is over cannot be killed; what runs can.
        await self.refused("invalid_state", drover.kill("d", request_id))
        run = await drover.detach("d", ["sleep", "1000"])
        await drover.kill("d", run["run"], 9)
        async with drover.attach("d", run["run"]) as (_, stream):
            self.assertEqual((await stream.result())["result"]["signal"], 9)

    async def test_a_stream_outlives_the_loss_of_the_bus(self):
        drover = self.drover
        await drover.create("r", wait="agent")
        data = os.urandom(8_000_000)
        async with drover.open("guest.put", {"path": "/tmp/r", "size_bytes": len(data)}, name="r") as (_, stream):
            await stream.write("data", data[:1_000_000])
            self.host.stop_nats()
            rest = asyncio.create_task(stream.write("data", data[1_000_000:]))
            self.host.start_nats()
            await rest
            stream.close("data")
            self.assertEqual((await stream.result())["sha256"], hashlib.sha256(data).hexdigest())

    async def test_a_stream_waits_for_a_host_that_is_not_back_yet(self):
        drover = self.drover
        await drover.create("w", wait="agent")
        data = os.urandom(3_000_000)
        async with drover.open("guest.put", {"path": "/tmp/w", "size_bytes": len(data)}, name="w") as (_, stream):
            await stream.write("data", data[:1_000_000])
            self.host.freeze()
            self.host.stop_nats()
            rest = asyncio.create_task(stream.write("data", data[1_000_000:]))
            stats = drover.nats.stats
            reconnects = stats["reconnects"]
            self.host.start_nats()
            while stats["reconnects"] == reconnects:
                await asyncio.sleep(0.01)
            heard = stats["in_msgs"]
            # The server answers for the host: nobody listens.
            while stats["in_msgs"] == heard:
                await asyncio.sleep(0.01)
            self.host.thaw()
            await rest
            stream.close("data")
            self.assertEqual((await stream.result())["sha256"], hashlib.sha256(data).hexdigest())

    async def test_a_create_is_done_once_whatever_dies_meanwhile(self):
        request_id = new_request_id()
        create = asyncio.create_task(self.drover.create("k", wait="agent", request_id=request_id))
        await asyncio.sleep(0.05)
        self.host.kill()
        self.host.start()
        vm = await create
        self.assertEqual(len(self.host.vmm(vm["vm_id"])), 1)
        self.assertEqual((await self.drover.create("k", wait="agent", request_id=request_id))["vm_id"], vm["vm_id"])
        self.host.kill()
        with self.assertRaises(NoOutcome):
            await self.drover.call("vm.get", name="k", deadline=0.5)
        self.host.start()
        await self.ready()


if __name__ == "__main__":
    if not URL:
        harness.in_own_network()
    unittest.main(verbosity=2)
