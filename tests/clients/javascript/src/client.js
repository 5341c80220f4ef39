import { encode } from "@msgpack/msgpack";
import { createInbox, errors, headers as newHeaders, connect as toNats } from "@nats-io/transport-node";
import { ulid } from "ulid";

import { DroverError, NoOutcome } from "./errors.js";
import { nobodyListens, read } from "./reply.js";
import { Stream } from "./stream.js";

export { DroverError, NoOutcome, Stream };

/** How long one attempt waits for its reply, and the pauses between two, in milliseconds. */
const ATTEMPT = 10_000;
const FIRST_PAUSE = 50;
const LONGEST_PAUSE = 2_000;

const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));

/**
 * Connects, and reads the contract from the bus.
 * @param {{servers?: string | string[], namespace?: string, root?: string, deadline?: number} & object} options
 *   those of `connect` of the NATS client, the namespace, and how long calls may take in milliseconds
 */
export async function connect({ namespace = "default", root = "drover", deadline = 30_000, ...options } = {}) {
  const nats = await toNats({ maxReconnectAttempts: -1, reconnectTimeWait: 200, ...options });
  const client = new Client(nats, namespace, root, deadline, options.inboxPrefix);
  await client.readContract();
  return client;
}

/** A client in one namespace; made by `connect`. */
export class Client {
  /** The operations of the contract, by name. */
  #operations = { "contract.read": { address: "drover.v1.cmd.{ns}.contract.read" } };

  constructor(nats, namespace, root, deadline, inboxPrefix) {
    Object.assign(this, { nats, namespace, root, deadline, inboxPrefix });
  }

  async readContract() {
    const { asyncapi, version } = await this.call("contract.read");
    this.contract = JSON.parse(asyncapi);
    this.hostVersion = version;
    for (const [name, operation] of Object.entries(this.contract.operations)) {
      const channel = operation.channel.$ref.split("/").at(-1);
      this.#operations[name] = { ...operation, address: this.contract.channels[channel].address };
    }
  }

  async close() {
    await this.nats.close();
  }

  /** Where an operation is asked for. */
  subject(verb, { name = "", host = "" } = {}) {
    const operation = this.#operations[verb];
    if (!operation) throw new TypeError(`the contract has no ${verb}`);
    const values = { ns: this.namespace, name, host };
    const address = operation.address.replace(/^drover\./, `${this.root}.`);
    return address.replace(/\{(\w+)\}/g, (_, key) => values[key]);
  }

  /**
   * Any verb that opens no stream, repeated with one id until there is an outcome.
   * @param {string} verb as the contract names its operation
   * @param {{body?: object, name?: string, host?: string, requestId?: string, deadline?: number}} options
   */
  async call(verb, { body = {}, name, host, requestId, deadline = this.deadline } = {}) {
    const subject = this.subject(verb, { name, host });
    if (this.#operations[verb]["x-drover-request-id"]) requestId ??= ulid();
    const ask = async (left) => {
      const timeout = Math.min(left, ATTEMPT);
      // The request's own time is all that is left: what is asked again joins it.
      return read(await this.nats.request(subject, encode(body), { timeout, headers: headersOf(requestId, left) }));
    };
    return await this.#insist(subject, requestId, deadline, name, ask);
  }

  /**
   * A verb that opens a stream.
   * @returns {Promise<{reply: object, stream: Stream}>}
   */
  async open(verb, { body = {}, name, requestId, deadline = this.deadline } = {}) {
    const subject = this.subject(verb, { name });
    const shape = this.#operations[verb]["x-drover-stream"];
    if (!shape) throw new TypeError(`${verb} opens no stream`);
    if (this.#operations[verb]["x-drover-request-id"]) requestId ??= ulid();
    const inbox = createInbox(this.inboxPrefix);
    const subscription = this.nats.subscribe(inbox);
    const messages = subscription[Symbol.asyncIterator]();
    let waiting;
    const ask = async (left) => {
      this.nats.publish(subject, encode(body), { reply: inbox, headers: headersOf(requestId, left) });
      waiting ??= messages.next();
      const first = await Promise.race([waiting, pause(Math.min(left, ATTEMPT))]);
      if (!first) throw new errors.TimeoutError();
      waiting = undefined;
      const { value } = first;
      if (nobodyListens(value)) throw new errors.NoRespondersError(subject);
      return read(value);
    };
    try {
      const reply = await this.#insist(subject, requestId, deadline, name, ask);
      const stream = new Stream(this.nats, subscription, messages, inbox, reply.stream ?? reply, shape);
      return { reply, stream };
    } catch (error) {
      subscription.unsubscribe();
      throw error;
    }
  }

  async #insist(subject, requestId, deadline, name, ask) {
    const until = Date.now() + deadline;
    let why = "the deadline passed";
    for (let wait = FIRST_PAUSE; Date.now() < until; wait = Math.min(wait * 2, LONGEST_PAUSE)) {
      try {
        return await ask(until - Date.now());
      } catch (error) {
        const cause = error.cause ?? error;
        if (error instanceof DroverError && !error.retryable) throw error;
        const nobody = error instanceof errors.NoRespondersError || cause instanceof errors.NoRespondersError;
        const known = error instanceof DroverError || error instanceof errors.TimeoutError || nobody;
        if (!known && !(error instanceof errors.RequestError)) throw error;
        why = error.message;
        // Nobody listens for a VM that is gone, nor for one whose owner is away.
        const found = nobody && name ? await this.#became(name, requestId) : undefined;
        if (found) return found;
      }
      await pause(Math.max(0, Math.min(wait, until - Date.now())));
    }
    throw new NoOutcome(subject, requestId, why);
  }

  async #became(name, requestId) {
    let found;
    try {
      const timeout = ATTEMPT;
      const subject = this.subject("pool.lookup");
      found = read(await this.nats.request(subject, encode({ name }), { timeout, headers: headersOf(undefined, timeout) }));
    } catch {
      return undefined;
    }
    if (found.found === "gone" && found.request_id === requestId) return found.reply;
    if (found.found === "gone" || found.found === "not_found") {
      const message = `there is no VM "${name}" in namespace "${this.namespace}"`;
      throw new DroverError({ code: "not_found", message, retryable: false });
    }
    return undefined;
  }
}

function headersOf(requestId, left) {
  const headers = newHeaders();
  headers.set("Content-Type", "application/msgpack");
  headers.set("Drover-Deadline-Ms", String(Math.max(1, Math.floor(left))));
  if (requestId) headers.set("Drover-Request-Id", requestId);
  return headers;
}
