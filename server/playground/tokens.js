/** The tokens of an answer as text: a run of one colour for each step, a line below each token for its source. */

import { toldOf } from "./answer.js";
import { byId, element } from "./elements.js";

/** @typedef {import("./answer.js").Step} Step */

export class TokenText {
  #drawn = 0;
  #part = element("div");
  /** @type {HTMLElement[]} */
  #runs = [];
  /** @type {{node: HTMLElement, place: number, token: number}[]} */
  #tokens = [];
  #current = 0;

  /**
   * Arrow keys go from token to token, of which one at a time is in the order of the tab key.
   * @param {Node} before what the tokens continue
   * @param {(place: number) => void} choose told the place of a step in the answer
   */
  constructor(before, choose) {
    this.choose = choose;
    /** @type {Step[]} */
    this.steps = [];
    this.node = element("div", { class: "tokens", role: "group", "aria-label": "Tokens of the answer" }, this.#part);
    this.#part.append(before);
    this.node.addEventListener("keydown", (event) => this.#key(event));
    this.node.addEventListener("click", (event) => this.#with(event, ({ place }) => choose(place)));
    for (const name of ["mouseover", "focusin"]) {
      this.node.addEventListener(name, (event) => this.#with(event, (it) => this.#tell(it)));
    }
    for (const name of ["mouseout", "focusout"]) this.node.addEventListener(name, hideTip);
  }

  /** @param {Step[]} steps of the answer so far */
  update(steps) {
    this.steps = steps;
    for (; this.#drawn < steps.length; this.#drawn += 1) this.#append(steps[this.#drawn], this.#drawn);
  }

  /** @param {number} place */
  mark(place) {
    for (const run of this.node.querySelectorAll(".run.marked")) run.classList.remove("marked");
    this.#runs[place]?.classList.add("marked");
  }

  /**
   * Show where another text of the same question goes on differently.
   * @param {number} offset in the text
   */
  markDifference(offset) {
    let before = 0;
    for (const { node } of this.#tokens) {
      before += node.textContent?.length ?? 0;
      if (before > offset) {
        node.classList.add("differs");
        return;
      }
    }
  }

  /** @param {Step} step @param {number} place */
  #append(step, place) {
    const run = element("span", { class: `run ${place % 2 ? "odd" : "even"}` });
    step.tokens.slice(0, step.delivered).forEach(({ text, source }, token) => {
      // half of a character: the token that completes it has the text
      if (text === "") return;
      const tabindex = this.#tokens.length === 0 ? 0 : -1;
      const node = element("span", { class: `token source-${source}`, tabindex }, text);
      this.#tokens.push({ node, place, token });
      run.append(node);
    });
    this.#runs.push(run);
    this.#part.append(run);
    if (!run.textContent?.endsWith("\n")) return;
    // what comes behind the end of a line is laid out without what stands before it: long texts stay fluid
    this.#part = element("div");
    this.node.append(this.#part);
  }

  /** @param {Event} event @param {(it: {node: HTMLElement, place: number, token: number}) => void} act */
  #with(event, act) {
    const found = this.#tokens.find(({ node }) => node === event.target);
    if (found !== undefined) act(found);
  }

  /** @param {{node: HTMLElement, place: number, token: number}} it */
  #tell({ node, place, token }) {
    showTip(node, toldOf(this.steps[place], token));
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const at = this.#tokens.findIndex(({ node }) => node === event.target);
    if (at < 0) return;
    const last = this.#tokens.length - 1;
    const target = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (event.key === "Enter" || event.key === " ") this.choose(this.#tokens[at].place);
    else if (event.key === "Escape") hideTip();
    else if (target !== undefined) this.#focus(Math.min(last, Math.max(0, target)));
    else return;
    event.preventDefault();
  }

  /** @param {number} index */
  #focus(index) {
    this.#tokens[this.#current].node.tabIndex = -1;
    this.#current = index;
    this.#tokens[index].node.tabIndex = 0;
    this.#tokens[index].node.focus();
  }
}

/** @param {HTMLElement} node @param {string[]} lines */
function showTip(node, lines) {
  const tip = byId("tip");
  tip.replaceChildren(...lines.map((line) => element("span", {}, line)));
  tip.hidden = false;
  node.setAttribute("aria-describedby", "tip");
  const [at, own] = [node.getClientRects()[0] ?? node.getBoundingClientRect(), tip.getBoundingClientRect()];
  const left = Math.min(at.left, document.documentElement.clientWidth - own.width - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${at.top > own.height + 10 ? at.top - own.height - 6 : at.bottom + 8}px`;
}

export function hideTip() {
  byId("tip").hidden = true;
}
