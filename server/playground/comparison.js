/** Two answers to one question: whether they are the same, where they part and how close the decision was. */

/**
 * Where two texts first differ, null when they are the same.
 * @param {string} one
 * @param {string} other
 * @returns {number | null}
 */
export function firstDifference(one, other) {
  if (one === other) return null;
  let at = 0;
  while (at < one.length && at < other.length && one[at] === other[at]) at += 1;
  // not between the halves of a character
  const half = at > 0 && one.charCodeAt(at - 1) >= 0xd800 && one.charCodeAt(at - 1) < 0xdc00;
  return half ? at - 1 : at;
}

/**
 * @typedef {object} Scored a token with what else the model might have written
 * @property {number} start where it begins in the answer
 * @property {string} token
 * @property {number} logprob
 * @property {{token: string, logprob: number}[]} top
 */

/**
 * Scored tokens of a chunk of either endpoint.
 * @param {any} logprobs
 * @param {number} start characters of the answer before it
 * @returns {Scored[]}
 */
export function scoredOf(logprobs, start) {
  if (!logprobs) return [];
  let before = start;
  return (logprobs.content ?? ofCompletion(logprobs)).map((/** @type {any} */ entry) => {
    const scored = { start: before, token: entry.token, logprob: entry.logprob, top: entry.top_logprobs ?? [] };
    before += entry.token.length;
    return scored;
  });
}

/** Lists of equal length as the entries that chats have. @param {any} logprobs */
function ofCompletion({ tokens, token_logprobs, top_logprobs }) {
  return tokens.map((/** @type {string} */ token, /** @type {number} */ index) => {
    const others = Object.entries(top_logprobs?.[index] ?? {});
    const top = others.map(([other, logprob]) => ({ token: other, logprob }));
    return { token, logprob: token_logprobs[index], top_logprobs: top };
  });
}

/**
 * How close it was where two texts part: the difference of two log-probabilities is that of the logits.
 * @param {Scored[]} scored of the one text
 * @param {number} offset where the texts part
 * @param {string} other the other text
 * @returns {{chosen: string, instead: string, gap: number} | null} null when the other was no likely one, or an end
 */
export function gapAt(scored, offset, other) {
  const decided = scored.find((entry) => entry.start + entry.token.length > offset);
  if (decided === undefined) return null;
  const rest = other.slice(decided.start);
  const others = decided.top.filter((entry) => entry.token !== decided.token);
  const written = others.filter((entry) => entry.token !== "" && rest.startsWith(entry.token));
  const instead = written.sort((one, two) => two.token.length - one.token.length)[0];
  if (instead === undefined) return null;
  return { chosen: decided.token, instead: instead.token, gap: Math.abs(decided.logprob - instead.logprob) };
}

/**
 * How the times of two answers compare, in words.
 * @param {number | null} fast seconds from the first to the last token with speculation
 * @param {number | null} plain the same without
 * @returns {string}
 */
export function ratioOf(fast, plain) {
  if (!fast || !plain) return "The answer is too short to compare times.";
  const ratio = plain / fast;
  // of the times as they are shown, so that the sum is right
  const later = Number(plain.toFixed(2)) - Number(fast.toFixed(2));
  if (Math.abs(later) < 0.005) return `Both took the same time, ${fast.toFixed(2)} s from first to last token.`;
  const came = `Without speculation it came ${Math.abs(later).toFixed(2)} s ${later >= 0 ? "later" : "earlier"}`;
  const times = `${fast.toFixed(2)} s against ${plain.toFixed(2)} s from first to last token`;
  const loss = "Here guessing cost more than it saved, as it may with a small model on a busy processor";
  const meaning = later >= 0 ? `, ${ratio.toFixed(2)} times as long.` : `. ${loss}.`;
  return `${came}: ${times}${meaning}`;
}
