/** What takes long: one thing at a time, which can be stopped and may fail. */

import { Refused } from "./api.js";
import { byId } from "./elements.js";

// Elsewhere a field that gets the focus brings a keyboard over half of the page.
const HAS_KEYS = "(pointer: fine)";

export class Work {
  /** @type {AbortController | null} */
  #running = null;

  /** @param {{onChange: () => void, onRefused: (status: number) => void}} page */
  constructor(page) {
    this.page = page;
  }

  get isBusy() {
    return this.#running !== null;
  }

  stop() {
    this.#running?.abort();
  }

  /**
   * @param {string} beginning
   * @param {(signal: AbortSignal) => Promise<string>} task gives what is read out at its end
   * @param {(message: string) => void} onProblem told what went wrong
   * @returns {Promise<boolean>} whether it came to its end
   */
  async run(beginning, task, onProblem) {
    const announcer = byId("announcer");
    const running = new AbortController();
    this.#change(running);
    announcer.textContent = beginning;
    try {
      announcer.textContent = await task(running.signal);
      return true;
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") announcer.textContent = "Stopped.";
      else if (error instanceof Refused) {
        onProblem(error.message);
        this.page.onRefused(error.status);
      } else throw error;
      return false;
    } finally {
      this.#change(null);
    }
  }

  /**
   * Buttons that go away leave the focus where the keyboard can go on.
   * @param {AbortController | null} running
   */
  #change(running) {
    const used = /** @type {HTMLElement} */ (document.activeElement);
    const hasStop = used === byId("stop");
    this.#running = running;
    this.page.onChange();
    const isLost = used === document.body || used.matches(":disabled") || !used.checkVisibility();
    if (running !== null && isLost) byId("stop").focus({ preventScroll: true });
    else if (running === null && hasStop && matchMedia(HAS_KEYS).matches) byId("prompt").focus({ preventScroll: true });
  }
}
