/** Text as paragraphs and code blocks, built of nodes; the only markup there is are fences of backticks. */

import { element } from "./elements.js";

/**
 * Parts of a text: code between fences, an unfinished block included, and what stands around it.
 * @param {string} text
 * @returns {{kind: "text" | "code", text: string, language: string}[]}
 */
export function partsOf(text) {
  /** @type {{kind: "text" | "code", text: string, language: string}[]} */
  const parts = [];
  /** @type {{fence: string, language: string} | null} */
  let open = null;
  /** @type {string[]} */
  let lines = [];
  const close = () => {
    const kind = open === null ? "text" : "code";
    if (lines.length > 0) parts.push({ kind, text: lines.join("\n"), language: open?.language ?? "" });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const found = /^\s*(`{3,})\s*([\w+#.-]*)\s*$/.exec(line);
    if (found !== null && open === null) {
      close();
      open = { fence: found[1], language: found[2] };
    } else if (found !== null && open !== null && found[2] === "" && found[1].length >= open.fence.length) {
      close();
      open = null;
    } else lines.push(line);
  }
  close();
  return parts;
}

/**
 * @param {string} text
 * @returns {HTMLElement[]}
 */
export function proseOf(text) {
  return partsOf(text).map((part) =>
    part.kind === "text"
      ? element("p", { class: "prose" }, part.text)
      : element("pre", { "data-language": part.language }, element("code", {}, part.text)),
  );
}
