/** The panel that shows the tree of one step, chosen or the newest. */

import { byId } from "./elements.js";
import { drawTree } from "./tree.js";

/**
 * @typedef {import("./answer.js").Step} Step
 *
 * @typedef {object} Steps an answer whose steps can be looked at
 * @property {{steps: Step[]}} answer
 * @property {(place: number) => void} choose
 * @property {(place: number) => void} mark
 */

// Often enough to look alive, seldom enough to cost nothing.
const REDRAW_MS = 200;

/**
 * A step in a sentence.
 * @param {Step} step
 * @returns {string}
 */
export function sentenceOf(step) {
  const ms = `${(step.seconds * 1000).toFixed(1)} ms`;
  if (step.step === 0) return `The prompt's own pass took ${ms} and decided the first token; nothing was guessed yet.`;
  const guesses = step.tree.length - 1;
  if (guesses <= 0) return `One pass of ${ms} checked no guesses and brought one token: plain decoding.`;
  const kept = step.path.length === 0 ? "kept none" : `kept ${step.path.length}`;
  const isCut = step.delivered < step.tokens.length;
  const cut = isCut ? ` ${step.delivered} of them are part of the answer, which ended here.` : "";
  const checked = `One pass of ${ms} checked ${guesses} guess${guesses === 1 ? "" : "es"}`;
  const tokens = `${step.tokens.length} token${step.tokens.length === 1 ? "" : "s"}`;
  return `${checked}, ${kept} and added the model's own next token: ${tokens}.${cut}`;
}

export class Inspector {
  #drawnAt = -Infinity;
  /** @type {Steps | null} */
  #source = null;
  #place = 0;
  /** @type {HTMLElement | null} */
  #opener = null;

  constructor() {
    byId("inspector-previous").addEventListener("click", () => this.#go(-1));
    byId("inspector-next").addEventListener("click", () => this.#go(1));
    byId("inspector-close").addEventListener("click", () => this.close());
  }

  /**
   * @param {Steps} source
   * @param {number} place of the step to draw
   */
  show(source, place) {
    const { steps } = source.answer;
    const step = steps[place];
    source.mark(place);
    this.#source = source;
    this.#place = place;
    if (!this.#hasFocus) this.#opener = /** @type {HTMLElement | null} */ (document.activeElement);
    byId("inspector").hidden = false;
    byId("inspector-title").textContent = step.step === 0 ? "The prompt" : `Step ${step.step}`;
    byId("inspector-words").textContent = sentenceOf(step);
    byId("inspector-tree").replaceChildren(...(step.tree.length > 0 ? [drawTree(step)] : []));
    byId("inspector-previous").disabled = place === 0;
    byId("inspector-next").disabled = place === steps.length - 1;
  }

  /**
   * The newest step of an answer that still comes, a few times a second.
   * @param {Steps} source
   * @param {number} now
   */
  follow(source, now) {
    const { steps } = source.answer;
    if (steps.length === 0 || now - this.#drawnAt < REDRAW_MS) return;
    this.#drawnAt = now;
    this.show(source, steps.length - 1);
  }

  close() {
    // who closes it with the keyboard goes on where it was opened
    if (this.#hasFocus) this.#opener?.focus();
    byId("inspector").hidden = true;
    this.#source = null;
  }

  get #hasFocus() {
    return byId("inspector").contains(document.activeElement);
  }

  /** @param {number} by */
  #go(by) {
    const place = this.#place + by;
    if (this.#source !== null && this.#source.answer.steps[place] !== undefined) this.#source.choose(place);
  }
}
