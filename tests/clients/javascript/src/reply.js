import { decode } from "@msgpack/msgpack";

import { DroverError } from "./errors.js";

/** Whether a message is the server's: no host had subscribed to the subject. */
export const nobodyListens = (message) => message.headers?.code === 503;

/** The body of a reply; throws a `DroverError` when it is a coded error. */
export function read(message) {
  const body = decode(message.data);
  if (message.headers?.has("Nats-Service-Error-Code")) throw new DroverError(body);
  return body;
}
