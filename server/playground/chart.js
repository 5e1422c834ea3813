/** A column of squares for every step, one for each token: how far each pass of the model went. */

import { drawing } from "./elements.js";

/** @typedef {import("./answer.js").Step} Step */

const SIDE = 8;
const PITCH = 10;

export class StripChart {
  #drawn = 0;
  #tallest = 0;
  #marked = -1;
  #svg = drawing("svg", { "aria-hidden": "true" });

  /**
   * A slider for the keyboard: its value is the step.
   * @param {(place: number) => void} choose told the place of a step in the answer
   */
  constructor(choose) {
    this.choose = choose;
    /** @type {Step[]} */
    this.steps = [];
    this.node = document.createElement("div");
    this.node.className = "chart";
    this.node.tabIndex = 0;
    this.node.setAttribute("role", "slider");
    this.node.setAttribute("aria-label", "Steps of this answer");
    this.node.setAttribute("aria-valuemin", "0");
    this.node.append(this.#svg);
    this.node.addEventListener("keydown", (event) => this.#key(event));
    this.node.addEventListener("click", (event) => this.#click(event));
    this.mark(0);
    this.#marked = -1;
  }

  /** @param {Step[]} steps of the answer so far */
  update(steps) {
    this.steps = steps;
    for (; this.#drawn < steps.length; this.#drawn += 1) this.#append(steps[this.#drawn], this.#drawn);
    const height = this.#tallest * PITCH + 3;
    this.#svg.setAttribute("width", String(steps.length * PITCH));
    this.#svg.setAttribute("height", String(height));
    // columns stand on the lower edge
    this.#svg.setAttribute("viewBox", `0 ${-height} ${Math.max(1, steps.length * PITCH)} ${height}`);
    this.node.setAttribute("aria-valuemax", String(Math.max(0, steps.length - 1)));
  }

  /** @param {number} place */
  mark(place) {
    this.#svg.children[this.#marked]?.classList.remove("marked");
    this.#marked = place;
    this.#svg.children[place]?.classList.add("marked");
    this.#show(place * PITCH);
    const step = this.steps[place];
    const text = step === undefined ? "" : tokensOf(step).map((token) => token.text).join("");
    this.node.setAttribute("aria-valuenow", String(Math.max(0, place)));
    this.node.setAttribute("aria-valuetext", step === undefined ? "no step" : `step ${step.step}, ${text}`);
  }

  /** A long answer's chart is scrolled. @param {number} x of a column that shall be seen */
  #show(x) {
    const { scrollLeft, clientWidth } = this.node;
    if (x < scrollLeft || x + PITCH > scrollLeft + clientWidth) this.node.scrollLeft = x - clientWidth / 2;
  }

  /** @param {Step} step @param {number} place */
  #append(step, place) {
    const tokens = tokensOf(step);
    this.#tallest = Math.max(this.#tallest, tokens.length);
    const x = place * PITCH + 1;
    const squares = tokens.map(({ source }, index) => {
      const y = -(index + 1) * PITCH - 1;
      return drawing("rect", { class: `square source-${source}`, x, y, width: SIDE, height: SIDE, rx: 2 });
    });
    const foot = drawing("rect", { class: "foot", x, y: -2, width: SIDE, height: 2 });
    this.#svg.append(drawing("g", { class: place % 2 ? "odd" : "even" }, ...squares, foot));
  }

  /** @param {number} place */
  #go(place) {
    const inside = Math.min(this.steps.length - 1, Math.max(0, place));
    if (inside >= 0) this.choose(inside);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const last = this.steps.length - 1;
    const [before, behind] = [this.#marked - 1, this.#marked + 1];
    const arrows = { ArrowLeft: before, ArrowDown: before, ArrowRight: behind, ArrowUp: behind };
    const leaps = { Home: 0, End: last, PageUp: this.#marked + 10, PageDown: this.#marked - 10 };
    const target = { ...arrows, ...leaps }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    this.#go(target);
  }

  /** @param {MouseEvent} event */
  #click(event) {
    this.#go(Math.floor((event.clientX - this.#svg.getBoundingClientRect().left) / PITCH));
  }
}

/** @param {Step} step */
function tokensOf(step) {
  return step.tokens.slice(0, step.delivered);
}
