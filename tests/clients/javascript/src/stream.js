// The client's end of a stream; see "Streams" in the description of the contract.

import { decode, encode } from "@msgpack/msgpack";

import { DroverError } from "./errors.js";
import { nobodyListens, read } from "./reply.js";

const CHUNK = 64 * 1024;
const WINDOW = 512 * 1024;
const ACK_EVERY = 5_000;
const RESEND_AFTER = 2_000;
const LONGEST_RESEND = 16_000;
const KEEP_ALIVE_EVERY = 20_000;
const ABSENT_KEEP_ALIVE = 1_000;
const PEER_LOST_AFTER = 60_000;
const TICK = 250;

/** Keeps what is not acknowledged, and says what to send. */
class Sender {
  #kept = Buffer.alloc(0);
  base = 0;
  next = 0;
  closed = false;
  closedSent = false;
  closedAcked = false;
  progress = Date.now();
  patience = RESEND_AFTER;
  resentBelow = 0;

  constructor(channel, window) {
    this.channel = channel;
    this.limit = Math.min(window, WINDOW);
  }

  get #end() {
    return this.base + this.#kept.length;
  }

  get room() {
    return Math.min(WINDOW - this.#kept.length, this.limit - this.#end);
  }

  push(data) {
    this.#kept = Buffer.concat([this.#kept, data]);
  }

  *frames(now) {
    const waits = this.next > this.base || (this.closedSent && !this.closedAcked);
    if (!waits) this.progress = now;
    else if (now - this.progress >= this.patience) this.resend(now, Math.min(this.patience * 2, LONGEST_RESEND));
    while (this.next < this.#end || (this.closed && !this.closedSent)) {
      const off = this.next;
      const data = this.#kept.subarray(off - this.base, off - this.base + CHUNK);
      this.next += data.length;
      this.closedSent = this.closed && this.next === this.#end;
      yield { ch: this.channel, off, data, ...(this.closedSent && { eof: true }) };
    }
  }

  resend(now, patience = RESEND_AFTER) {
    this.resentBelow = Math.max(this.resentBelow, this.next);
    this.next = this.base;
    this.closedSent = false;
    Object.assign(this, { progress: now, patience });
  }

  acknowledged(off, window, now) {
    // The same offset without more room means that something after it was lost, if it is not sent again already.
    const repeated = off === this.base && this.next > this.base && off + window <= this.limit;
    const again = repeated && off > this.resentBelow;
    this.closedAcked ||= off > this.#end;
    const upto = Math.max(this.base, Math.min(off, this.#end));
    this.#kept = this.#kept.subarray(upto - this.base);
    if (upto > this.base || this.closedAcked) Object.assign(this, { progress: now, patience: RESEND_AFTER });
    else if (again) this.resend(now);
    this.base = upto;
    this.next = Math.max(this.next, upto);
    this.limit = Math.max(this.limit, off + Math.min(window, WINDOW));
  }
}

/** Puts bytes in order, and says what it has. */
class Receiver {
  got = 0;
  taken = 0;
  acked = 0;
  ended = false;
  endedAcked = false;
  gap = false;
  lastAck = Date.now();
  chunks = [];

  constructor(channel) {
    this.channel = channel;
  }

  data(off, data, eof) {
    const end = off + data.length;
    if (off > this.got || (end <= this.got && !(eof && !this.ended))) {
      // Something was lost, or an acknowledgement of ours was.
      this.gap = true;
      return;
    }
    const fresh = data.subarray(this.got - off);
    if (fresh.length > 0) this.chunks.push(fresh);
    this.got = Math.max(this.got, end);
    this.ended ||= eof;
  }

  frame(now) {
    const due = this.taken - this.acked >= WINDOW / 4 || now - this.lastAck >= ACK_EVERY;
    if (!due && !this.gap && !(this.ended && !this.endedAcked)) return undefined;
    Object.assign(this, { gap: false, lastAck: now, acked: this.taken, endedAcked: this.ended });
    const window = Math.max(0, WINDOW - (this.got - this.taken));
    return { ch: this.channel, acked_off: this.got + Number(this.ended), window };
  }
}

/** An open stream; made by `open` of the client. */
export class Stream {
  #nats;
  #subscription;
  #inbox;
  #subject;
  #senders;
  #receivers;
  #outcome;
  #settle;
  #over = false;
  #waiters = [];
  #heard = Date.now();
  #said = Date.now();
  #connected = true;
  #moved = true;
  #statuses;
  #timer;

  constructor(nats, subscription, messages, inbox, opened, shape) {
    this.#nats = nats;
    this.#subscription = subscription;
    this.#inbox = inbox;
    this.#subject = opened.io_subject;
    this.#senders = new Map(shape.client_channels.map((name) => [name, new Sender(name, opened.window)]));
    this.#receivers = new Map(shape.host_channels.map((name) => [name, new Receiver(name)]));
    this.#outcome = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    // A result that nobody asks for is no error of the program.
    this.#outcome.catch(() => {});
    this.#timer = setInterval(() => this.#pump(), TICK);
    this.#statuses = nats.status();
    this.#watch();
    this.#listen(messages);
    this.#pump();
  }

  /** Gives bytes to a channel; waits while its window is full. */
  async write(channel, data) {
    const sender = this.#senders.get(channel);
    for (let at = 0; at < data.length; ) {
      if (this.#over) return void (await this.#outcome);
      const room = sender.room;
      if (room <= 0) {
        await this.#change();
        continue;
      }
      sender.push(data.subarray(at, at + room));
      at += room;
      this.#pump();
    }
  }

  /** Ends a channel. */
  end(channel) {
    this.#senders.get(channel).closed = true;
    this.#pump();
  }

  /** The bytes of a channel until its end. */
  async *read(channel) {
    const receiver = this.#receivers.get(channel);
    for (;;) {
      const chunk = receiver.chunks.shift();
      if (chunk) {
        receiver.taken += chunk.length;
        this.#pump();
        yield chunk;
      } else if (receiver.ended) {
        return;
      } else if (this.#over) {
        return void (await this.#outcome);
      } else {
        await this.#change();
      }
    }
  }

  /** The result of the whole stream, once it has ended. */
  async result() {
    return decode(await this.#outcome);
  }

  /** Gives up what runs. */
  cancel() {
    if (this.#over) return;
    this.#send({ cancel: true });
    this.#finish(() => this.#settle.reject(new Error("the stream was cancelled")));
  }

  #change() {
    return new Promise((wake) => this.#waiters.push(wake));
  }

  #send(frame, withInbox = false) {
    try {
      this.#nats.publish(this.#subject, encode(frame), withInbox ? { reply: this.#inbox } : {});
    } catch {
      // As good as lost on the way: it is sent again, or the stream is given up.
    }
    this.#said = Date.now();
  }

  #pump() {
    if (this.#over) return;
    const now = Date.now();
    if (now - this.#heard >= PEER_LOST_AFTER) {
      this.#finish(() => this.#settle.reject(this.#lost()));
      return;
    }
    // Without a connection whatever is sent would only wait, once for each resend.
    if (!this.#connected) return;
    // The host must know where we are, and learn it again after a reconnect.
    if (this.#moved || now - this.#said >= KEEP_ALIVE_EVERY) {
      this.#moved = false;
      this.#send({ keep_alive: true }, true);
    }
    for (const sender of this.#senders.values()) {
      for (const frame of sender.frames(now)) this.#send(frame);
    }
    for (const receiver of this.#receivers.values()) {
      const frame = receiver.frame(now);
      if (frame) this.#send(frame);
    }
  }

  #lost() {
    const sum = (ends, value) => String([...ends.values()].reduce((total, end) => total + value(end), 0));
    return new DroverError({
      code: "unavailable",
      message: `the host of the stream was not heard for ${PEER_LOST_AFTER / 1_000} s`,
      retryable: true,
      details: {
        acked_off: sum(this.#senders, (sender) => sender.base),
        received_off: sum(this.#receivers, (receiver) => receiver.got),
      },
    });
  }

  /** Notes each return of the connection: what was on its way most likely is lost. */
  async #watch() {
    for await (const { type } of this.#statuses) {
      if (this.#over) return;
      if (type === "disconnect") this.#connected = false;
      if (type !== "reconnect") continue;
      this.#connected = this.#moved = true;
      for (const sender of this.#senders.values()) sender.resend(Date.now());
      this.#pump();
    }
  }

  async #listen(messages) {
    for (let next = await messages.next(); !next.done && !this.#over; next = await messages.next()) {
      if (nobodyListens(next.value)) {
        // The host is reconnecting, or gone: it is told again soon where we are.
        this.#said = Math.min(this.#said, Date.now() - KEEP_ALIVE_EVERY + ABSENT_KEEP_ALIVE);
        continue;
      }
      this.#heard = Date.now();
      try {
        this.#take(read(next.value));
      } catch (error) {
        this.#finish(() => this.#settle.reject(error));
      }
    }
  }

  #take(frame) {
    if (frame.end) {
      const { result, error } = frame.end;
      // Until it knows that, the host repeats the end.
      this.#send({ done: true });
      this.#finish(() => (error ? this.#settle.reject(new DroverError(error)) : this.#settle.resolve(result)));
      return;
    }
    if (frame.acked_off !== undefined) {
      this.#senders.get(frame.ch)?.acknowledged(frame.acked_off, frame.window ?? 0, this.#heard);
    } else if (frame.off !== undefined) {
      this.#receivers.get(frame.ch)?.data(frame.off, frame.data ?? new Uint8Array(), frame.eof === true);
    }
    this.#pump();
    this.#wake();
  }

  #finish(settle) {
    this.#over = true;
    clearInterval(this.#timer);
    this.#statuses.stop();
    this.#subscription.unsubscribe();
    settle();
    this.#wake();
  }

  #wake() {
    for (const wake of this.#waiters.splice(0)) wake();
  }
}
