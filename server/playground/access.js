/** The API key: asked for where the server wants one, and handed to what speaks with it. */

import { Refused } from "./api.js";
import { byId } from "./elements.js";

export class Access {
  /**
   * @param {import("./api.js").Api} api
   * @param {() => void} onOpen the server takes the key
   */
  constructor(api, onOpen) {
    this.api = api;
    this.onOpen = onOpen;
    byId("access").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#unlock();
    });
  }

  ask() {
    if (!byId("access").hidden) return;
    byId("access").hidden = false;
    byId("key").focus();
  }

  async #unlock() {
    const problem = byId("access-problem");
    problem.textContent = "";
    this.api.useKey(byId("key").value);
    try {
      await this.api.model();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      problem.textContent = error.status === 401 ? "The server does not take this key." : error.message;
      return;
    }
    byId("access").hidden = true;
    byId("key").value = "";
    this.onOpen();
  }
}
