/** One answer on the page: its tokens or its text, who proposed them, and how fast it came. */

import { StripChart } from "./chart.js";
import { element } from "./elements.js";
import { proseOf } from "./prose.js";
import { TokenText } from "./tokens.js";

/** @typedef {import("./answer.js").Answer} Answer */

/**
 * Figures of an answer, each with what it is.
 * @param {Answer} answer
 * @returns {[string, string][]}
 */
export function totalsOf(answer) {
  /** @type {[string, string | null][]} */
  const found = [
    ["tokens per second", answer.tokensPerSecond?.toFixed(0) ?? null],
    ["tokens per step", answer.tokensPerStep?.toFixed(2) ?? null],
    ["ms to the first token", answer.firstTokenSeconds === null ? null : (answer.firstTokenSeconds * 1000).toFixed(0)],
    ["tokens", answer.tokens === null ? null : String(answer.tokens)],
    ["steps", answer.passes === null ? null : String(answer.passes)],
  ];
  return /** @type {[string, string][]} */ (found.filter(([, value]) => value !== null));
}

/** @type {Record<string, string>} */
const MEANINGS = {
  base: "the model's own",
  heads: "guessed by draft heads",
  lookup: "found earlier in the text",
  recycling: "seen before behind such a token",
  prediction: "expected by the client",
  grammar: "forced by the form",
};

export class AnswerView {
  #isPlanned = false;
  #isOver = false;

  /**
   * @param {string} title
   * @param {Answer} answer
   * @param {{prompt: string, isColoured: boolean}} look prompt: what a completion continues, or nothing
   * @param {(view: AnswerView, place: number) => void} onStep a step was chosen
   */
  constructor(title, answer, look, onStep) {
    this.answer = answer;
    this.isColoured = look.isColoured;
    this.choose = (/** @type {number} */ place) => onStep(this, place);
    this.prompt = element("span", { class: "prompt" }, look.prompt);
    this.tokens = new TokenText(this.prompt, this.choose);
    this.chart = new StripChart(this.choose);
    this.prose = element("div", { class: "plain" });
    this.state = element("p", { class: "state" });
    this.problem = element("p", { class: "problem", role: "alert", hidden: true });
    this.legend = element("ul", { class: "legend", "aria-label": "Tokens by source" });
    this.totals = element("dl", { class: "totals" });
    this.text = element("div", { class: "text" }, this.tokens.node, this.prose);
    const parts = [this.text, this.state, this.problem, this.chart.node, this.legend, this.totals];
    this.node = element("div", { class: "answer" }, element("h3", {}, title), ...parts);
    this.update();
  }

  /** Draw what is new, with the browser's next frame. */
  plan() {
    if (this.#isPlanned) return;
    this.#isPlanned = true;
    requestAnimationFrame(() => {
      this.#isPlanned = false;
      this.update();
    });
  }

  update() {
    const { steps, text } = this.answer;
    // a server that tells nothing of its steps still answers
    const isColoured = this.isColoured && steps.length > 0;
    this.tokens.update(steps);
    this.tokens.node.hidden = !isColoured;
    this.prose.hidden = isColoured;
    if (!isColoured) this.prose.replaceChildren(this.prompt.cloneNode(true), ...proseOf(text));
    this.state.textContent = this.#stateInWords;
    this.chart.node.hidden = steps.length === 0;
    this.chart.update(steps);
    this.legend.replaceChildren(...[...this.answer.bySource].map(([source, count]) => element("li", {},
      element("span", { class: `token source-${source}` }, source), ` ${count} `,
      element("span", { class: "meaning" }, MEANINGS[source] ?? ""))));
    this.totals.replaceChildren(...totalsOf(this.answer).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  }

  /** Nothing more will come. */
  end() {
    this.#isOver = true;
    this.update();
  }

  /** @param {boolean} isColoured */
  colour(isColoured) {
    this.isColoured = isColoured;
    this.update();
  }

  /** @param {number} place of a step */
  mark(place) {
    this.tokens.mark(place);
    this.chart.mark(place);
  }

  /** @param {string} message */
  fail(message) {
    this.problem.textContent = message;
    this.problem.hidden = false;
  }

  /** What the text alone does not tell. */
  get #stateInWords() {
    const { finish, firstAt } = this.answer;
    if (finish === "length") return "The limit ended this answer: “Most tokens”, or the model's context.";
    if (!this.#isOver) return firstAt === null ? "Waiting for the first token …" : "";
    return finish === null && this.problem.hidden ? "Stopped." : "";
  }

  /** What is read out when the answer is there: all of it once, and not token by token. */
  get summary() {
    return [this.answer.text, ...totalsOf(this.answer).map(([name, value]) => `${value} ${name}`)].join(". ");
  }
}
