/** What is served and whether it can answer, asked again while that may change. */

import { Refused } from "./api.js";
import { byId } from "./elements.js";

// While a model loads, its progress is worth a look; later only its end is.
const SOON_MS = 700;
const LATER_MS = 10_000;

export class ServerStatus {
  isReady = false;
  name = "";
  #isLocked = false;
  #timer = 0;

  /**
   * @param {import("./api.js").Api} api
   * @param {{onChange: () => void, onKeyWanted: () => void}} page
   */
  constructor(api, page) {
    this.api = api;
    this.page = page;
  }

  /** The server has taken a key. */
  unlock() {
    this.#isLocked = false;
    return this.look();
  }

  /** Ask now, and from now on. */
  async look() {
    clearTimeout(this.#timer);
    try {
      const health = await this.api.health();
      const share = health.state === "loading" ? ` ${Math.round(health.progress * 100)} %` : "";
      const reason = health.state === "ready" ? "" : `: ${health.reason}`;
      this.#tell(health.state, `${health.state}${share}${reason}`);
      // the context is known once the model is loaded
      const isKnown = this.name !== "" && (!this.isReady || byId("context").textContent !== "");
      if (!isKnown && !this.#isLocked) await this.#lookAtModel();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 401) {
        this.#isLocked = true;
        this.page.onKeyWanted();
      } else this.#tell("gone", error.message);
    }
    this.page.onChange();
    // somebody may have asked meanwhile, too
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.look(), this.isReady ? LATER_MS : SOON_MS);
  }

  async #lookAtModel() {
    const model = await this.api.model();
    this.name = model.id;
    byId("model").textContent = model.id;
    byId("context").textContent = model.max_model_len === null ? "" : `${model.max_model_len} tokens of context`;
  }

  /** @param {string} state @param {string} words */
  #tell(state, words) {
    this.isReady = state === "ready";
    const health = byId("health");
    // every per cent is shown, and only what is new read out
    if (health.dataset.state !== state) byId("announcer").textContent = `The server: ${words}`;
    health.dataset.state = state;
    health.textContent = words;
  }
}
