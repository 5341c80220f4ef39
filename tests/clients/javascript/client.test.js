// The client on a live host, whose bus is at DROVER_URL; `test_client.py` starts it. DROVER_LOGIN is the way into a bus
// that asks who comes: a user, its password, and files with certificates.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { after, before, test } from "node:test";

import { connect, DroverError } from "./src/client.js";

let drover;

before(async () => {
  const { user, password: pass, ca: caFile, cert: certFile, key: keyFile } = JSON.parse(process.env.DROVER_LOGIN ?? "{}");
  const login = user ? { user, pass, inboxPrefix: `_INBOX.${user}`, tls: { caFile, certFile, keyFile } } : {};
  drover = await connect({ servers: process.env.DROVER_URL.split(","), ...login });
});
after(async () => {
  await drover.close();
});

const agent = { wait: "agent" };
const text = (bytes) => new TextDecoder().decode(bytes);
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

async function collect(chunks) {
  const all = [];
  for await (const chunk of chunks) all.push(chunk);
  return Buffer.concat(all);
}

test("the main job", async () => {
  const { vm } = await drover.call("pool.create", { body: { name: "site", ...agent }, deadline: 90_000 });
  assert.deepEqual([vm.state, vm.agent.state], ["running", "ready"]);
  const argv = ["sh", "-c", "echo hi; echo no >&2; exit 3"];
  const { result } = await drover.call("guest.exec", { name: "site", body: { argv } });
  assert.deepEqual([result.exit_code, text(result.stdout), text(result.stderr)], [3, "hi\n", "no\n"]);
  const put = await drover.open("guest.put", { name: "site", body: { path: "/tmp/there", size_bytes: 8 } });
  await put.stream.write("data", Buffer.from("and back"));
  put.stream.end("data");
  const written = await put.stream.result();
  const get = await drover.open("guest.get", { name: "site", body: { path: "/tmp/there" } });
  assert.equal(text(await collect(get.stream.read("data"))), "and back");
  // Who owns it and since when is told of what was read.
  const { uid, gid, mtime_ms: since, ...got } = await get.stream.result();
  assert.deepEqual(got, written);
  assert.deepEqual([uid, gid, since > 0], [0, 0, true]);
  const { stream } = await drover.open("vm.console", { name: "site" });
  await stream.write("stdin", Buffer.from("\n"));
  let seen = "";
  for await (const chunk of stream.read("stdout")) {
    seen += text(chunk);
    if (seen.includes("drover-agent")) break;
  }
  stream.cancel();
  assert.match(text((await drover.call("vm.logs", { name: "site" })).data), /drover-agent/);
  assert.equal((await drover.call("vm.pause", { name: "site" })).vm.state, "paused");
  assert.equal((await drover.call("vm.resume", { name: "site" })).vm.state, "running");
  assert.equal((await drover.call("vm.stop", { name: "site", body: { force: true } })).vm.state, "stopped");
  assert.equal((await drover.call("vm.start", { name: "site", body: agent, deadline: 90_000 })).vm.incarnation, 2);
  await drover.call("vm.delete", { name: "site", deadline: 60_000 });
  assert.equal((await drover.call("pool.lookup", { body: { name: "site" } })).found, "gone");
  await assert.rejects(drover.call("vm.get", { name: "site" }), { code: "not_found" });
  const { events } = await drover.call("events.read", { body: { vm: "site" } });
  assert.deepEqual(events.map(({ event }) => event.seq), events.map((_, at) => at + 1));
  assert.equal(events.at(-1).event.last, true);
});

test("errors say what to do", async () => {
  const small = drover.call("pool.create", { body: { name: "a", spec: { memory_bytes: 3 } } });
  await assert.rejects(small, (error) => error instanceof DroverError && /64 MiB/.test(error.message));
});

test("streams carry what they should", async () => {
  await drover.call("pool.create", { body: { name: "s", ...agent }, deadline: 90_000 });
  const data = randomBytes(3_000_000);
  const put = await drover.open("guest.put", { name: "s", body: { path: "/tmp/d", size_bytes: data.length } });
  await put.stream.write("data", data);
  put.stream.end("data");
  assert.equal((await put.stream.result()).sha256, sha256(data));
  const get = await drover.open("guest.get", { name: "s", body: { path: "/tmp/d" } });
  assert.equal(sha256(await collect(get.stream.read("data"))), sha256(data));
  const body = { argv: ["sh", "-c", "cat; echo done >&2; exit 4"], stream: true };
  const { stream } = await drover.open("guest.exec", { name: "s", body });
  await stream.write("stdin", data.subarray(0, 700_000));
  stream.end("stdin");
  const [out, err] = await Promise.all([collect(stream.read("stdout")), collect(stream.read("stderr"))]);
  assert.deepEqual([sha256(out), text(err)], [sha256(data.subarray(0, 700_000)), "done\n"]);
  assert.equal((await stream.result()).exit_code, 4);
  await drover.call("vm.delete", { name: "s", deadline: 60_000 });
});
