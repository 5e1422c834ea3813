/** An answer as it grows: its text, its steps and its times. Knows nothing of the page. */

/**
 * @typedef {object} TreeNode a guess, or the root: the token that was known already
 * @property {string} text
 * @property {number | null} parent index in the tree, null for the root
 * @property {number} depth
 * @property {string} source
 * @property {number | null} rank place among the guesses of its head
 * @property {number | null} probability of the whole way from the root, as the drafter estimated it
 *
 * @typedef {object} Step what one pass of the model brought; step 0 is the prompt's
 * @property {number} step
 * @property {TreeNode[]} tree
 * @property {number[]} path accepted nodes, without the root
 * @property {{text: string, source: string}[]} tokens
 * @property {number} delivered how many of the tokens are part of the answer
 * @property {number} seconds
 */

/** Who may have proposed a token, in the order of the legend. */
export const SOURCES = ["base", "heads", "lookup", "recycling", "prediction", "grammar"];

export class Answer {
  /** All that was written, what came before the answer itself included. */
  text = "";
  /** The answer itself. */
  content = "";
  /** @type {Step[]} */
  steps = [];
  /** @type {any} */
  usage = null;
  /** @type {any} */
  speculation = null;
  /** @type {string | null} */
  finish = null;
  /** @type {number | null} */
  firstAt = null;
  /** @type {number | null} */
  lastAt = null;

  /** @param {number} askedAt in milliseconds, as all times here */
  constructor(askedAt) {
    this.askedAt = askedAt;
  }

  /**
   * @param {any} chunk of either endpoint
   * @param {number} now
   */
  take(chunk, now) {
    const choice = chunk.choices?.[0];
    const text = choice?.text ?? choice?.delta?.content ?? "";
    const steps = chunk.speculation_detail ?? [];
    this.text += (choice?.delta?.reasoning_content ?? "") + text;
    this.content += text;
    this.steps.push(...steps);
    if (text !== "" || steps.length > 0) {
      this.firstAt ??= now;
      this.lastAt = now;
    }
    this.finish = choice?.finish_reason ?? this.finish;
    this.usage = chunk.usage ?? this.usage;
    this.speculation = chunk.speculation ?? this.speculation;
  }

  /** Tokens so far; null while nobody has told. */
  get tokens() {
    if (this.usage !== null) return this.usage.completion_tokens;
    return this.steps.length > 0 ? this.steps.reduce((sum, step) => sum + step.delivered, 0) : null;
  }

  /** Passes behind the prompt's. */
  get passes() {
    if (this.speculation !== null) return this.speculation.steps;
    return this.steps.length > 0 ? this.steps.filter((step) => step.step > 0).length : null;
  }

  get tokensPerStep() {
    if (this.speculation !== null) return this.speculation.tokens_per_step;
    if (this.tokens === null || !this.passes) return null;
    return (this.tokens - this.#ofPrompt) / this.passes;
  }

  /** Seconds until the first token. */
  get firstTokenSeconds() {
    return this.firstAt === null ? null : (this.firstAt - this.askedAt) / 1000;
  }

  /** Seconds from the first token to the last: neither the queue nor the prompt is part of it. */
  get decodeSeconds() {
    return this.firstAt === null || this.lastAt === null ? null : (this.lastAt - this.firstAt) / 1000;
  }

  get tokensPerSecond() {
    if (this.tokens === null || !this.decodeSeconds) return null;
    return (this.tokens - this.#ofPrompt) / this.decodeSeconds;
  }

  /** Tokens by who proposed them. @returns {Map<string, number>} */
  get bySource() {
    const counts = new Map(SOURCES.map((source) => [source, 0]));
    for (const step of this.steps) {
      for (const { source } of step.tokens.slice(0, step.delivered)) counts.set(source, (counts.get(source) ?? 0) + 1);
    }
    return new Map([...counts].filter(([, count]) => count > 0));
  }

  /** Tokens that the prompt's own pass brought. */
  get #ofPrompt() {
    return this.steps[0]?.step === 0 ? this.steps[0].delivered : 1;
  }
}

/**
 * The node behind a token of a step; null for the token that the model added itself.
 * @param {Step} step
 * @param {number} place of the token in step.tokens
 * @returns {TreeNode | null}
 */
export function nodeOf(step, place) {
  return place < step.path.length ? step.tree[step.path[place]] : null;
}

/**
 * @param {number | null} share
 * @returns {string}
 */
export function percent(share) {
  if (share === null) return "";
  return share > 0 && share < 0.01 ? "< 1 %" : `${Math.round(share * 100)} %`;
}

/**
 * What there is to tell of a token, a line each.
 * @param {Step} step
 * @param {number} place
 * @returns {string[]}
 */
export function toldOf(step, place) {
  const node = nodeOf(step, place);
  const ms = `${(step.seconds * 1000).toFixed(1)} ms`;
  if (step.step === 0) return ["Step 0, the prompt", `the first token, decided in the prompt's own pass of ${ms}`];
  const where = `Step ${step.step}, token ${place + 1} of ${step.delivered} in ${ms}`;
  if (node === null) return [where, "base: the model's own next token behind the accepted guesses"];
  const rank = node.rank === null ? "" : `, guess ${node.rank + 1} of head ${node.depth}`;
  const parent = node.parent === null ? null : step.tree[node.parent].probability;
  const given = parent && node.probability !== null ? Math.min(1, node.probability / parent) : null;
  const lines = [where, `${node.source}: depth ${node.depth}${rank}`];
  if (node.probability !== null) {
    const own = given === null || node.depth < 2 ? "" : ` (${percent(given)} once the token before was right)`;
    lines.push(`expected with ${percent(node.probability)}${own}`);
  }
  return lines;
}
