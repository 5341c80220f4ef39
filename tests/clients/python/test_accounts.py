"""Users of a guest and their SSH keys: tests/tests/accounts.rs and debian.rs boot one."""

import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "src"))

from drover_client import Client, DroverError

URL, VM = os.environ.get("DROVER_URL"), os.environ.get("DROVER_VM", "")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBERERERERERERERERERERERERERERERERERERERERER of-python"


@unittest.skipUnless(URL and VM, "tests/tests/accounts.rs runs it")
class Accounts(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.drover = await self.enterAsyncContext(Client([URL]))

    async def test_a_user_and_its_keys(self):
        made = await self.drover.add_user(VM, "snake", gecos="of Python")
        self.assertEqual((made["change"], made["user"]["home"]), ("made", "/home/snake"))
        self.assertEqual((await self.drover.add_user(VM, "snake"))["change"], "none")
        self.assertIn("snake", [user["name"] for user in await self.drover.users(VM)])
        changed = await self.drover.change_keys(VM, "snake", add=[KEY])
        self.assertEqual((len(changed["added"]), changed["total"]), (1, 1))
        listed = await self.drover.keys(VM, "snake")
        self.assertEqual([key["comment"] for key in listed["keys"]], ["of-python"])
        told = await self.drover.exec(VM, ["sh", "-c", "cat ~/.ssh/authorized_keys; id -un"], user="snake")
        self.assertEqual(told["stdout"].decode(), f"{KEY}\nsnake\n")
        self.assertEqual((await self.drover.change_keys(VM, "snake", replace=True))["total"], 0)
        gone = await self.drover.remove_user(VM, "snake", remove_home=True)
        self.assertEqual((gone["uid"], gone["home"]), (made["user"]["uid"], "/home/snake"))
        with self.assertRaises(DroverError) as caught:
            await self.drover.keys(VM, "snake")
        self.assertEqual(caught.exception.code, "not_found")


if __name__ == "__main__":
    unittest.main()
