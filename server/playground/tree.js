/** The tree of a step, drawn: what was guessed, how likely it seemed, and what of it was kept. */

import { percent } from "./answer.js";
import { drawing } from "./elements.js";

/** @typedef {import("./answer.js").Step} Step */

const ROW = 44;
const BOX = 34;
const GAP = 24;
// A wide tree is made this much smaller before it has to be scrolled.
const SMALLEST = 0.8;
const CHARACTER = 7.3;
const LONGEST = 16;

/**
 * @typedef {object} Place a node where it is drawn
 * @property {string} text
 * @property {string} source
 * @property {number | null} probability
 * @property {number | null} parent
 * @property {boolean} kept whether the model would have written it
 * @property {boolean} added the model's own token behind the path, which nobody guessed
 * @property {number} column
 * @property {number} row
 */

/**
 * A place for every node: what was kept is the topmost row, likelier guesses stand above others.
 * @param {Step} step
 * @returns {Place[]}
 */
export function placesOf(step) {
  const kept = new Set([0, ...step.path]);
  /** @type {Place[]} */
  const places = step.tree.map((node, index) => ({
    ...node, kept: kept.has(index), added: false, column: node.depth, row: 0,
  }));
  const own = step.tokens[step.path.length];
  if (own !== undefined && places.length > 0) {
    const parent = step.path.at(-1) ?? 0;
    const column = places[parent].column + 1;
    places.push({ ...own, probability: null, parent, kept: true, added: true, column, row: 0 });
  }
  /** @type {number[][]} */
  const children = places.map(() => []);
  places.forEach(({ parent }, index) => parent !== null && children[parent].push(index));
  const rank = (/** @type {number} */ index) => (places[index].kept ? 2 : (places[index].probability ?? 0));
  for (const siblings of children) siblings.sort((one, other) => rank(other) - rank(one));
  let rows = 0;
  const pending = places.length > 0 ? [0] : [];
  while (pending.length > 0) {
    const index = /** @type {number} */ (pending.pop());
    places[index].row = rows;
    if (children[index].length === 0) rows += 1;
    pending.push(...children[index].reverse());
  }
  return places;
}

/**
 * A token with its white space made visible, no longer than a box.
 * @param {string} text
 * @returns {string}
 */
export function shown(text) {
  if (text === "") return "∅";
  const visible = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ {4,}/g, (run) => `␣${run.length}`);
  const spaced = visible.replace(/^ | $/g, "␣");
  const letters = [...spaced];
  return letters.length > LONGEST ? `${letters.slice(0, LONGEST - 1).join("")}…` : spaced;
}

/**
 * @param {Step} step
 * @returns {SVGElement}
 */
export function drawTree(step) {
  const places = placesOf(step);
  const widths = widthsOf(places);
  const left = widths.map((_, column) => 2 + widths.slice(0, column).reduce((sum, width) => sum + width + GAP, 0));
  const width = (left.at(-1) ?? 0) + (widths.at(-1) ?? 0) + 2;
  const height = (Math.max(0, ...places.map((place) => place.row)) + 1) * ROW;
  const at = (/** @type {Place} */ place) => ({ x: left[place.column], y: place.row * ROW + 2 });
  const edges = places.filter((place) => place.parent !== null).map((place) => {
    const from = at(places[/** @type {number} */ (place.parent)]);
    const x = from.x + widths[place.column - 1];
    const to = at(place);
    const middle = BOX / 2;
    const [start, end] = [from.y + middle, to.y + middle];
    const d = `M${x} ${start}C${x + GAP * 0.6} ${start} ${to.x - GAP * 0.6} ${end} ${to.x} ${end}`;
    return { kept: place.kept, node: drawing("path", { class: classOf("edge", place), d }) };
  });
  // what is kept is drawn last, above what is not
  edges.sort((one, other) => Number(one.kept) - Number(other.kept));
  const nodes = places.map((place) => drawNode(place, at(place), widths[place.column]));
  const label = describe(step, places);
  const look = { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label };
  const svg = drawing("svg", look, ...edges.map(({ node }) => node), ...nodes);
  svg.style.maxWidth = `${width}px`;
  svg.style.minWidth = `${width * SMALLEST}px`;
  return svg;
}

/**
 * The drawing in words.
 * @param {Step} step
 * @param {Place[]} places
 * @returns {string}
 */
function describe(step, places) {
  const kept = places.filter((place) => place.kept && place.parent !== null);
  const words = kept.map(({ text, source, probability }) =>
    `“${text}” (${[source, ...(probability === null ? [] : [percent(probability)])].join(", ")})`);
  return `Tree of ${step.tree.length} nodes behind “${step.tree[0]?.text ?? ""}”; kept: ${words.join(", ")}`;
}

/** @param {Place[]} places @returns {number[]} */
function widthsOf(places) {
  /** @type {number[]} */
  const widths = [];
  for (const { text, column } of places) {
    widths[column] = Math.max(widths[column] ?? 40, [...shown(text)].length * CHARACTER + 14);
  }
  return widths;
}

/** @param {string} name @param {Place} place */
function classOf(name, place) {
  return `${name} source-${place.source}${place.kept ? " kept" : ""}${place.added ? " added" : ""}`;
}

/** @param {Place} place @param {{x: number, y: number}} at @param {number} width */
function drawNode(place, at, width) {
  const title = place.added ? "the model's own token" : `${place.source} ${percent(place.probability)}`;
  const below = place.added ? "model" : place.parent === null ? "known" : percent(place.probability);
  const middle = at.x + width / 2;
  return drawing("g", { class: classOf("node", place) },
    drawing("title", {}, `${place.text} — ${title}`),
    drawing("rect", { x: at.x, y: at.y, width, height: BOX, rx: 6 }),
    drawing("text", { x: middle, y: at.y + 15, class: "word" }, shown(place.text)),
    drawing("text", { x: middle, y: at.y + 28, class: "share" }, below),
  );
}
