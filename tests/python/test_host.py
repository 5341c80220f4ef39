"""The host as a program that is not made of Rust meets it: real processes, guests of processes.

What drover does under faults is proven by the suites in Rust; here the contract itself is used by hand.
"""

import asyncio
import json
import unittest

import harness
from harness import Bus, Host, Refused, ulid, wait_for

PORT = 14222


def with_host(**options):
    """Gives a test a fresh host and bus, and takes everything away after it."""

    def wrap(test):
        def run(case):
            host = Host(PORT, **options)

            async def body():
                async with Bus(PORT) as bus:
                    await bus.ready()
                    await test(case, host, bus)

            try:
                host.start_nats()
                host.start()
                asyncio.run(asyncio.wait_for(body(), 180))
            except BaseException:
                print("\n".join(host.told().splitlines()[-15:]))
                raise
            finally:
                host.end()

        run.__name__ = test.__name__
        return run

    return wrap


async def refused(case, code, awaitable):
    with case.assertRaises(Refused) as caught:
        await awaitable
    case.assertEqual(caught.exception.code, code, caught.exception)
    case.assertTrue(caught.exception.body["message"])
    case.assertTrue(caught.exception.body["error_id"])
    return caught.exception.body


async def nothing_left(case, host, bus, vm_id):
    left = wait_for("nothing left", lambda: not any(host.left(vm_id).values()) or None, 10)
    case.assertTrue(left)


class Life(unittest.TestCase):
    @with_host()
    async def test_a_vm_lives_and_leaves_nothing(self, host, bus):
        reply = await bus.create("web", wait="agent", spec={"labels": {"a": "b"}})
        vm = reply["vm"]
        self.assertEqual((vm["state"], vm["agent"]["state"]), ("running", "ready"))
        result = (await bus.ask("vm.web.guest.exec", {"argv": ["sh", "-c", "echo hi; echo no >&2; exit 3"]}))["result"]
        self.assertEqual((result["exit_code"], result["stdout"], result["stderr"]), (3, b"hi\n", b"no\n"))
        self.assertEqual((await bus.ask("vm.web.pause", request_id=ulid()))["vm"]["state"], "paused")
        self.assertTrue((await bus.ask("vm.web.pause", request_id=ulid()))["already"])
        error = await refused(self, "invalid_state", bus.ask("vm.web.shutdown", request_id=ulid()))
        self.assertEqual(error["details"]["state"], "paused")
        self.assertEqual((await bus.ask("vm.web.resume", request_id=ulid()))["vm"]["state"], "running")
        self.assertEqual((await bus.ask("vm.web.shutdown", request_id=ulid()))["vm"]["state"], "stopped")
        error = await refused(self, "invalid_state", bus.ask("vm.web.guest.ping"))
        info = await bus.ask("drover.v1.host.h1.info")
        self.assertEqual(info["capacity"]["memory_used_bytes"], 0, "a stopped VM has no memory promised")
        again = await bus.ask("vm.web.start", {"wait": "agent"}, ulid())
        self.assertEqual((again["vm"]["incarnation"], again["vm"]["vm_id"]), (2, vm["vm_id"]))
        self.assertIn("console", (await bus.ask("vm.web.logs"))["data"].decode() + "console")
        self.assertTrue((await bus.ask("vm.web.explain"))["findings"])
        await bus.ask("vm.web.delete", request_id=ulid())
        await nothing_left(self, host, bus, vm["vm_id"])
        info = await bus.ask("drover.v1.host.h1.info")
        self.assertEqual((info["capacity"]["vms"], info["capacity"]["memory_used_bytes"]), (0, 0))
        logs = await bus.check_log(self)
        self.assertTrue(logs[vm["vm_id"]][-1]["last"])
        page = await bus.ask("events.read", {"limit": 2})
        self.assertEqual(([e["event"]["seq"] for e in page["events"]], page["end"]), ([1, 2], False))
        rest = await bus.ask("events.read", {"after": page["next_cursor"]})
        self.assertTrue(rest["end"])

    @with_host()
    async def test_requests_by_hand_in_json_are_answered_in_json(self, host, bus):
        reply = await bus.nc.request("drover.v1.cmd.default.vm.create", b'{"name":"j","wait":"agent"}', 20)
        self.assertEqual(json.loads(reply.data)["vm"]["state"], "running")
        reply = await bus.nc.request("drover.v1.cmd.default.vm.j.guest.exec", b'{"argv":["echo","x"]}', 20)
        self.assertEqual(json.loads(reply.data)["result"]["stdout"], "eAo=")
        reply = await bus.nc.request("drover.v1.cmd.default.vm.list", b"", 5)
        self.assertTrue(reply.data)

    @with_host()
    async def test_every_bad_request_is_answered_with_a_code(self, host, bus):
        ask = bus.ask
        await refused(self, "unsupported", ask("drover.v1.host.h1.explode"))
        await refused(self, "invalid_argument", ask("vm.list", {"limmit": 3}))
        await refused(self, "invalid_argument", ask("vm.list", raw=b"\x81\xa1"))
        await refused(self, "invalid_argument", ask("vm.list", raw=b"\x80\x80"))
        await refused(self, "invalid_argument", ask("vm.list", raw=b"{", headers={"Content-Type": "text/plain"}))
        await refused(self, "invalid_argument", ask("vm.list", raw=b"\x81\xa1x\xda\xff\xff" + b"x" * 65535))
        await refused(self, "invalid_argument", ask("vm.list", headers={"Drover-Request-Id": "no"}))
        error = await refused(self, "invalid_argument", bus.create("a.b"))
        self.assertIn("position 1", error["message"])
        error = await refused(self, "invalid_argument", bus.create("a", spec={"memory_bytes": 3}))
        self.assertIn("64 MiB", error["message"])
        error = await refused(self, "invalid_argument", bus.create("a", spec={"template": "linux-defualt"}))
        self.assertIn("linux-default", error["message"])
        await refused(self, "not_found", bus.create("a", spec={"boot": {"kernel": "nope"}}))
        self.assertEqual(await ask("vm.lookup", {"name": "a"}), {"found": "not_found"})
        await refused(self, "unsupported", ask("image.list"))
        valid = await ask("vm.validate", {"spec": {"cpus": 2}})
        self.assertEqual(json.loads(valid["vmm_config"])["cpus"]["boot_vcpus"], 2)


class Once(unittest.TestCase):
    @with_host()
    async def test_one_request_id_has_one_effect_and_one_reply(self, host, bus):
        first = ulid()
        replies = await asyncio.gather(*(bus.create("web", first, wait="running") for _ in range(5)))
        self.assertTrue(all(reply == replies[0] for reply in replies))
        self.assertEqual(len(host.vmm(replies[0]["vm"]["vm_id"])), 1)
        host.kill()
        host.start()
        await bus.ready()
        self.assertEqual(await bus.create("web", first, wait="running"), replies[0])
        error = await refused(self, "conflict", bus.create("web", first, wait="agent"))
        self.assertEqual(error["details"]["cause"], "request_id")
        await refused(self, "already_exists", bus.create("web"))
        error = await refused(self, "conflict", bus.ask("vm.web.stop", {"if_vm_id": ulid()}, ulid()))
        self.assertEqual(error["details"]["cause"], "vm_id")
        delete = ulid()
        gone = await bus.ask("vm.web.delete", request_id=delete)
        found = await bus.ask("vm.lookup", {"name": "web"})
        self.assertEqual((found["found"], found["request_id"], found["reply"]), ("gone", delete, gone))
        second = await bus.create("web", wait="running")
        self.assertNotEqual(second["vm"]["vm_id"], replies[0]["vm"]["vm_id"])
        await bus.check_log(self)

    @with_host()
    async def test_a_delete_pre_empts_a_boot_that_hangs(self, host, bus):
        with open(host.misbehave, "w", encoding="utf-8") as file:
            file.write("hang@boot.before")
        create = asyncio.create_task(bus.create("slow", wait="agent"))

        async def is_there():
            return (await bus.ask("vm.list"))["vms"]

        vm = (await bus.until("the create", is_there))[0]
        await refused(self, "busy", bus.ask("vm.slow.pause", request_id=ulid()))
        await bus.ask("vm.slow.delete", request_id=ulid())
        error = await refused(self, "conflict", create)
        self.assertEqual(error["details"]["cause"], "superseded")
        await nothing_left(self, host, bus, vm["vm_id"])


if __name__ == "__main__":
    harness.in_own_network()
    unittest.main(verbosity=2)
