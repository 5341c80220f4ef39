"""Work that a guest does for its host, with a guest that has a kernel of its own: tests/tests/work.rs boots it."""

import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "src"))

from drover_client import Client, DroverError

URL, VM = os.environ.get("DROVER_URL"), os.environ.get("DROVER_VM", "")


@unittest.skipUnless(URL and VM, "tests/tests/work.rs runs it")
class Work(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.drover = await self.enterAsyncContext(Client([URL]))

    async def says(self, script):
        result = await self.drover.exec(VM, ["sh", "-c", script])
        self.assertEqual(result["exit_code"], 0, result)
        return result["stdout"].decode().strip()

    async def test_clock_cpus_and_unused_blocks(self):
        await self.says("date -s @1000000000")
        clock = await self.drover.clock(VM, set=True)
        self.assertEqual(clock["change"], "stepped")
        self.assertLess(clock["ahead_us"], -1_000_000_000)
        self.assertGreater(int(await self.says("date +%s")), 1_700_000_000)
        online = await self.drover.online(VM)
        self.assertEqual((online["cpus"], online["cpus_added"]), (2, []))
        trimmed = await self.drover.trim(VM, mounts=["/mnt"])
        self.assertEqual([mount["mount"] for mount in trimmed["trimmed"]], ["/mnt"])

    async def test_another_guest(self):
        done = await self.drover.identity(VM, hostname="fourth", keep=["machine_id"])
        outcomes = {part["part"]: part["outcome"] for part in done["parts"]}
        self.assertEqual((outcomes["hostname"], outcomes["machine_id"]), ("done", "kept"))
        self.assertEqual(await self.says("hostname"), "fourth")
        with self.assertRaises(DroverError) as caught:
            await self.drover.identity(VM, hostname="no name")
        self.assertEqual(caught.exception.code, "invalid_argument")


if __name__ == "__main__":
    unittest.main()
