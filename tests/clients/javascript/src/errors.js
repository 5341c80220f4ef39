/** A coded error of a host. */
export class DroverError extends Error {
  /** @param {{code: string, message: string, retryable: boolean, details?: Record<string, string>}} body */
  constructor(body) {
    super(`${body.code}: ${body.message}`);
    this.name = "DroverError";
    this.code = body.code;
    this.retryable = body.retryable;
    this.details = body.details ?? {};
  }
}

/** No outcome within the deadline. The request may still have an effect: go on with the same request id. */
export class NoOutcome extends Error {
  /** @param {string} subject @param {string | undefined} requestId @param {string} why */
  constructor(subject, requestId, why) {
    super(`no outcome of ${subject}: ${why}${requestId ? `; request id ${requestId}` : ""}`);
    this.name = "NoOutcome";
    this.requestId = requestId;
  }
}
