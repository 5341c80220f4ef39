"""The host as a program that is not made of Rust meets it: real processes, guests of processes."""

import asyncio
import json
import os
import signal
import subprocess
import time
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


class Faults(unittest.TestCase):
    @with_host()
    async def test_a_vmm_that_fails_at_any_step_of_a_create_leaves_a_cause_and_nothing_else(self, host, bus):
        steps = [
            "die@start", "die@api", "die@create.before", "die@create.after", "die@boot.before", "die@boot.mid",
            "exit0@boot.mid", "500@create", "500@boot", "garbage@create", "garbage@boot",
        ]
        for number, step in enumerate(steps):
            with self.subTest(step=step):
                with open(host.misbehave, "w", encoding="utf-8") as file:
                    file.write(step)
                name = f"vm-{number}"
                error = await refused(self, "vmm_error", bus.create(name, wait="running"))
                vm = await bus.ask(f"vm.{name}.get")
                self.assertEqual((vm["state"], vm["vm_id"]), ("failed", error["details"]["vm_id"]))
                self.assertTrue(vm["cause"]["kind"].startswith(("vmm_", "kernel_")), vm["cause"])
                left = host.left(vm["vm_id"])
                self.assertEqual((left["taps"], left["elements"], left["processes"]), ([], [], []))
        with open(host.misbehave, "w", encoding="utf-8"):
            pass
        self.assertEqual((await bus.create("well", wait="agent"))["vm"]["state"], "running")
        logs = await bus.check_log(self)
        self.assertEqual(sum(log[-1]["state"] == "failed" and bool(log[-1]["cause"]) for log in logs.values()), len(steps))

    @with_host()
    async def test_a_killed_vmm_is_seen_and_the_policy_acts(self, host, bus):
        plain = (await bus.create("plain", wait="agent"))["vm"]
        restart = {"policy": "on_failure", "limit": 3, "window_ms": 60000, "backoff_ms": 10, "backoff_max_ms": 20}
        again = (await bus.create("again", wait="agent", spec={"restart": restart}))["vm"]
        for vm in (plain, again):
            os.kill(host.vmm(vm["vm_id"])[0], signal.SIGKILL)

        async def failed():
            vm = await bus.ask("vm.plain.get")
            return vm["state"] == "failed" and vm

        async def back():
            vm = await bus.ask("vm.again.get")
            return vm["incarnation"] == 2 and vm["agent"]["state"] == "ready" and vm

        cause = (await bus.until("failed", failed))["cause"]
        self.assertEqual((cause["kind"], cause["evidence"]["signal"]), ("vmm_signal", "9"))
        self.assertEqual((await bus.until("restarted", back))["restarts"], 1)
        await bus.ask("vm.again.guest.shutdown")

        async def off():
            return (await bus.ask("vm.again.get"))["state"] == "stopped"

        await bus.until("a clean end does not restart on_failure", off)
        await bus.check_log(self)

    @with_host()
    async def test_vms_outlive_a_killed_daemon(self, host, bus):
        names = [f"v{n}" for n in range(6)]
        vms = await asyncio.gather(*(bus.create(name, wait="agent") for name in names))
        pids = {reply["vm"]["name"]: host.vmm(reply["vm"]["vm_id"]) for reply in vms}
        await bus.ask("vm.v1.pause", request_id=ulid())
        for _ in range(3):
            host.kill()
            host.start()
            await bus.ready()
        for reply in vms:
            vm = await bus.ask(f"vm.{reply['vm']['name']}.get")
            self.assertEqual(vm["state"], "paused" if vm["name"] == "v1" else "running")
            self.assertEqual([vm["vmm_pid"]], pids[vm["name"]])

            async def pong(name=vm["name"]):
                try:
                    return await bus.ask(f"vm.{name}.guest.ping")
                except Refused:
                    return None

            if vm["name"] != "v1":
                await bus.until("the agent", pong)
        await asyncio.gather(*(bus.ask(f"vm.{name}.delete", request_id=ulid()) for name in names))
        self.assertEqual(host.processes(), [])
        await bus.check_log(self)

    @with_host()
    async def test_a_daemon_killed_in_the_middle_of_creates_finishes_or_undoes_them(self, host, bus):
        ids = {f"k{n}": ulid() for n in range(8)}

        async def insist(name):
            while True:
                try:
                    return await bus.create(name, ids[name], wait="agent")
                except Refused as error:
                    if not error.body["retryable"]:
                        raise
                except Exception as error:  # noqa: BLE001 - nobody answers while the daemon is down
                    if "Error" not in type(error).__name__:
                        raise
                await asyncio.sleep(0.1)

        work = [asyncio.create_task(insist(name)) for name in ids]
        for pause in (0.03, 0.05, 0.1):
            await asyncio.sleep(pause)
            host.kill()
            host.start()
        replies = await asyncio.gather(*work)
        self.assertEqual(len({reply["vm"]["vm_id"] for reply in replies}), len(ids))
        for reply in replies:
            self.assertEqual(len(host.vmm(reply["vm"]["vm_id"])), 1, "one VMM for each VM")
        self.assertEqual(len((await bus.ask("vm.list"))["vms"]), len(ids))
        await asyncio.gather(*(bus.ask(f"vm.{name}.delete", request_id=ulid(), timeout=30) for name in ids))
        self.assertEqual(host.processes(), [])
        await bus.check_log(self)

    @with_host(duplicate_window_ms=1000)
    async def test_a_bus_that_is_gone_for_longer_than_its_window_loses_and_doubles_nothing(self, host, bus):
        vms = await asyncio.gather(*(bus.create(f"n{n}", wait="agent") for n in range(4)))
        deletes = [asyncio.create_task(bus.ask(f"vm.n{n}.delete", request_id=ulid(), timeout=60)) for n in (0, 1)]
        creates = [asyncio.create_task(bus.create(f"m{n}", wait="running")) for n in range(3)]
        await asyncio.sleep(0.02)
        host.stop_nats()
        pids = host.vmm(vms[2]["vm"]["vm_id"])
        os.kill(host.vmm(vms[3]["vm"]["vm_id"])[0], signal.SIGKILL)
        await asyncio.sleep(2.5)
        self.assertEqual(host.vmm(vms[2]["vm"]["vm_id"]), pids, "no VM is harmed")
        host.start_nats()
        await asyncio.gather(*deletes, *creates, return_exceptions=True)
        await bus.ready()

        async def told():
            try:
                vm = await bus.ask("vm.n3.get")
                outbox = (await bus.ask("drover.v1.host.h1.info"))["outbox"]
                return vm["state"] == "failed" and outbox == 0
            except (Refused, Exception):  # noqa: B014 - the bus has just come back
                return False

        await bus.until("everything is told", told)
        logs = await bus.check_log(self)
        self.assertEqual(logs[vms[3]["vm"]["vm_id"]][-1]["cause"]["kind"], "vmm_signal")

    def test_a_host_starts_and_adopts_without_a_bus(self):
        host = Host(PORT)
        try:
            host.start_nats()
            host.start()

            async def make():
                async with Bus(PORT) as bus:
                    await bus.ready()
                    return (await bus.create("a", wait="agent"))["vm"]

            vm = asyncio.run(make())
            host.kill()
            host.stop_nats()
            host.start()
            wait_for("adoption", lambda: "ready vms=1" in host.told())
            self.assertEqual(len(host.vmm(vm["vm_id"])), 1)
            host.start_nats()

            async def look():
                async with Bus(PORT) as bus:
                    await bus.ready()
                    return await bus.ask("vm.a.get")

            self.assertEqual(asyncio.run(look())["state"], "running")
        finally:
            host.end()


class Scale(unittest.TestCase):
    @with_host()
    async def test_a_hundred_vms_at_once(self, host, bus):
        began = time.monotonic()
        names = [f"s{n:03}" for n in range(100)]
        replies = await asyncio.gather(*(bus.create(name, wait="agent", spec={"memory_bytes": 64 << 20}) for name in names))
        self.assertTrue(all(reply["vm"]["agent"]["state"] == "ready" for reply in replies))
        print(f"\n100 creates to agent ready: {time.monotonic() - began:.2f} s", end=" ")
        page = await bus.ask("vm.list", {"limit": 60})
        rest = await bus.ask("vm.list", {"limit": 60, "cursor": page["next_cursor"]})
        self.assertEqual([vm["name"] for vm in page["vms"] + rest["vms"]], names)
        await asyncio.gather(*(bus.ask(f"vm.{name}.delete", request_id=ulid(), timeout=60) for name in names))
        self.assertEqual(host.processes(), [])
        await bus.check_log(self)


class NewUser(unittest.TestCase):
    """Errors as somebody meets them who has never seen drover."""

    def run_host(self, change, env=None):
        host = Host(PORT)
        try:
            with open(host.config, encoding="utf-8") as file:
                config = json.load(file)
            text = change(config, host)
            with open(host.config, "w", encoding="utf-8") as file:
                file.write(text if isinstance(text, str) else json.dumps(config))
            command = [f"{host.bins}/drover", "host", "run", "--config", host.config]
            done = subprocess.run(command, env={**host.environment(), **(env or {})}, capture_output=True, text=True, timeout=20)
            self.assertNotEqual(done.returncode, 0)
            return done.stderr
        finally:
            host.end()

    def test_a_missing_hypervisor_is_named_with_the_places_that_were_tried(self):
        def change(config, _):
            config["vmm"]["path"] = "/nonexistent/cloud-hypervisor"

        self.assertIn("/nonexistent/cloud-hypervisor", self.run_host(change))

    def test_a_hypervisor_that_is_too_old_is_named_with_its_version(self):
        def change(config, host):
            path = os.path.join(host.folder, "old")
            with open(path, "w", encoding="utf-8") as file:
                file.write("#!/bin/sh\necho cloud-hypervisor v40.0\n")
            os.chmod(path, 0o755)
            config["vmm"]["path"] = path

        self.assertIn("v40.0", self.run_host(change))

    def test_broken_yaml_is_named_with_its_line(self):
        self.assertIn("line", self.run_host(lambda config, _: "bus: [\n"))

    def test_a_misspelt_key_is_named(self):
        def change(config, _):
            config["stat_dir"] = "/x"

        self.assertIn("stat_dir", self.run_host(change))

    def test_missing_images_say_how_to_build_them(self):
        def change(config, _):
            config["images_dir"] = "/nonexistent"

        self.assertIn("build-image.sh", self.run_host(change))

    def test_a_second_daemon_on_one_state_folder_is_refused(self):
        host = Host(PORT)
        try:
            host.start_nats()
            host.start()
            wait_for("the first", lambda: "ready vms=" in host.told())
            command = [f"{host.bins}/drover", "host", "run", "--config", host.config]
            done = subprocess.run(command, env=host.environment(), capture_output=True, text=True, timeout=20)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(str(host.daemon.pid), done.stderr)
        finally:
            host.end()

    def test_the_command_line_without_a_bus_says_what_to_do(self):
        command = [f"{os.environ['DROVER_BIN_DIR']}/drover", "--server", "nats://127.0.0.1:1", "vm", "ls"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("next:", done.stderr)


if __name__ == "__main__":
    harness.in_own_network()
    unittest.main(verbosity=2)
