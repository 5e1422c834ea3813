/** One question answered with speculation and without, side by side, and what the two have to say. */

import { Answer } from "./answer.js";
import { firstDifference, gapAt, ratioOf, scoredOf } from "./comparison.js";
import { element } from "./elements.js";
import { AnswerView } from "./message.js";

/** @typedef {import("./api.js").Api} Api */
/**
 * @typedef {{path: string, body: any}} Asked
 *
 * @typedef {object} Surroundings
 * @property {AbortSignal} signal
 * @property {(view: AnswerView, place: number) => void} onStep a step was chosen
 * @property {(view: AnswerView) => void} onView an answer begins
 */

// as many as servers tell
const ALTERNATIVES = 20;

/** @param {Asked} asked @returns {boolean} */
export function isPlain(asked) {
  return asked.body.speculation.mode === "off";
}

/**
 * The same request, speculating the other way.
 * @param {Asked} asked
 * @returns {Asked}
 */
export function switched(asked) {
  const speculation = { detail: true, mode: isPlain(asked) ? "auto" : "off" };
  return { path: asked.path, body: { ...asked.body, speculation } };
}

/**
 * Answer twice, one after the other as the server does, and judge. Both are new answers: the one that is there already
 * may have computed the prompt and drawn trees, and would be slower for that.
 * @param {Api} api
 * @param {Asked} asked
 * @param {{prompt: string, isColoured: boolean}} look
 * @param {HTMLElement} place
 * @param {Surroundings} page
 * @returns {Promise<string>} the verdict
 */
export async function compare(api, asked, look, place, page) {
  const [quick, slow] = isPlain(asked) ? [switched(asked), asked] : [asked, switched(asked)];
  const verdict = element("div", { class: "verdict" });
  place.replaceChildren(verdict);
  const answers = [];
  for (const request of [quick, slow]) {
    const title = `Speculation ${isPlain(request) ? "off" : "on"}`;
    const view = new AnswerView(title, new Answer(performance.now()), look, page.onStep);
    verdict.before(view.node);
    page.onView(view);
    for await (const chunk of api.stream(request.path, request.body, page.signal)) {
      view.answer.take(chunk, performance.now());
      view.plan();
    }
    view.end();
    answers.push(view);
  }
  const [fast, plain] = answers;
  const offset = firstDifference(fast.answer.text, plain.answer.text);
  const words = offset === null ? "The text is the same." : await parting(api, slow, fast, plain, offset, page.signal);
  const times = ratioOf(fast.answer.decodeSeconds, plain.answer.decodeSeconds);
  const judgement = element("p", { class: offset === null ? "same" : "different" }, words);
  verdict.append(judgement, ...race(fast, plain), element("p", {}, times));
  verdict.scrollIntoView({ block: "nearest" });
  return `${words} ${times}`;
}

/**
 * Where two texts part, and how close the model was to the other one.
 * @param {Api} api
 * @param {Asked} plainly the request without speculation
 * @param {AnswerView} fast
 * @param {AnswerView} plain
 * @param {number} offset
 * @param {AbortSignal} signal
 */
async function parting(api, plainly, fast, plain, offset, signal) {
  for (const view of [fast, plain]) view.tokens.markDifference(offset);
  const before = fast.answer.text.slice(0, offset);
  const where = `The texts part behind ${[...before].length} characters, ${quoted(`…${before.slice(-24)}`)}`;
  const gap = gapAt(await scores(api, plainly, offset, signal), offset, fast.answer.text);
  if (gap === null) {
    const isEnd = [fast, plain].some((view) => view.answer.text.length === offset);
    return `${where}${isEnd ? ", where one of them ends" : `, on none of the ${ALTERNATIVES} likeliest tokens`}.`;
  }
  const nats = gap.gap < 0.01 ? gap.gap.toExponential(1) : gap.gap.toFixed(2);
  const decision = `${quoted(gap.chosen)} and not ${quoted(gap.instead)}, whose logits are ${nats} apart`;
  return `${where}: plain decoding wrote ${decision}.`;
}

/** Isolated, so that it turns nothing of our own words around. @param {string} text */
function quoted(text) {
  return `“\u2068${text}\u2069”`;
}

/**
 * The plain answer once more as far as it matters, with log-probabilities. They take time, so what was timed had none.
 * @param {Api} api
 * @param {Asked} plainly
 * @param {number} offset
 * @param {AbortSignal} signal
 */
async function scores(api, plainly, offset, signal) {
  const isChat = plainly.path.includes("chat");
  const wanted = isChat ? { logprobs: true, top_logprobs: ALTERNATIVES } : { logprobs: ALTERNATIVES };
  const body = { ...plainly.body, ...wanted, speculation: { mode: "off" } };
  const enough = new AbortController();
  const either = AbortSignal.any([signal, enough.signal]);
  const found = [];
  let length = 0;
  for await (const chunk of api.stream(plainly.path, body, either)) {
    const scored = scoredOf(chunk.choices[0]?.logprobs, length);
    found.push(...scored);
    length = scored.reduce((sum, entry) => sum + entry.token.length, length);
    if (length > offset) break;
  }
  enough.abort();
  return found;
}

/**
 * Both times as bars of one scale.
 * @param {AnswerView} fast
 * @param {AnswerView} plain
 */
function race(fast, plain) {
  const times = [["with speculation", fast], ["without", plain]].map(([name, view]) =>
    ({ name: String(name), seconds: /** @type {AnswerView} */ (view).answer.decodeSeconds ?? 0 }));
  const longest = Math.max(...times.map(({ seconds }) => seconds));
  return times.map(({ name, seconds }, index) => {
    const bar = element("span", { class: `bar ${index === 0 ? "fast" : "slow"}` });
    bar.style.width = `${longest === 0 ? 0 : (100 * seconds) / longest}%`;
    return element("div", { class: "race" }, element("span", { class: "name" }, name),
      element("span", { class: "track" }, bar), element("span", { class: "time" }, `${seconds.toFixed(2)} s`));
  });
}
