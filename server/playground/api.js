/** The server's interface, as this page uses it; knows the key and nothing of the page. */

import { EventParser } from "./events.js";

/** What the server refused, in its words. */
export class Refused extends Error {
  /**
   * @param {number} status 0 when it came in the middle of an answer
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  /** In memory only: nothing of this page stores it. */
  #key = "";

  /** @param {string} key */
  useKey(key) {
    this.#key = key;
  }

  /** @returns {Promise<{state: string, reason: string, progress: number}>} */
  async health() {
    return (await this.#ask("health", {})).json();
  }

  /** @returns {Promise<{id: string, max_model_len: number | null}>} */
  async model() {
    return (await (await this.#ask("v1/models", {})).json()).data[0];
  }

  /**
   * Chunks of an answer as they come.
   * @param {string} path
   * @param {object} body
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<any>}
   */
  async *stream(path, body, signal) {
    const asked = { ...body, stream: true, stream_options: { include_usage: true } };
    const headers = { "content-type": "application/json" };
    const response = await this.#ask(path, { method: "POST", body: JSON.stringify(asked), headers, signal });
    const parser = new EventParser();
    const reader = /** @type {ReadableStream} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read().catch(brokenOff);
      if (done) brokenOff(null);
      for (const data of parser.push(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Refused(0, chunk.error.message);
        yield chunk;
      }
    }
  }

  /**
   * Relative to the page, which a proxy may have put below a path of its own.
   * @param {string} path
   * @param {RequestInit} options
   * @returns {Promise<Response>}
   */
  async #ask(path, options) {
    const headers = new Headers(options.headers);
    // not Authorization: that one may be a proxy's
    if (this.#key !== "") headers.set("x-api-key", this.#key);
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error instanceof DOMException) throw error;
      throw new Refused(0, "the server does not answer");
    }
    if (!response.ok) throw new Refused(response.status, await reasonOf(response));
    return response;
  }
}

/**
 * @param {unknown} error
 * @returns {never}
 */
function brokenOff(error) {
  if (error instanceof DOMException) throw error;
  throw new Refused(0, "the connection ended before the answer did");
}

/**
 * @param {Response} response
 * @returns {Promise<string>}
 */
async function reasonOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}
