/** Where questions are written, or texts to be continued. */

import { byId, element } from "./elements.js";

/** @typedef {"chat" | "completion"} Kind */

/** The demo model knows Python's standard library and nothing else. */
const EXAMPLES = {
  chat: ["What does textwrap.dedent do?", "What does json.dumps do?", "What does shutil.copytree do?"],
  completion: ["def read_text(path):\n", "class Settings:\n    def __init__(self", "import argparse\n\ndef main():\n"],
};
const WORDS = {
  chat: { label: "Your question", hint: "Enter sends, Shift + Enter begins a line", send: "Send", rows: 2 },
  completion: { label: "Text to continue", hint: "Ctrl + Enter sends", send: "Continue", rows: 8 },
};
// Keyboards on glass have no Shift + Enter; there Enter begins a line and the button sends.
const IS_GLASS = matchMedia("(pointer: coarse)").matches;

export class Composer {
  /** @type {Kind} */
  kind = "chat";
  #prompt = byId("prompt");

  /** @param {{onSend: () => void, onChange: () => void}} page */
  constructor(page) {
    this.page = page;
    byId("composer").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      page.onSend();
    });
    this.#prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    this.#prompt.addEventListener("input", () => page.onChange());
  }

  /** @returns {string} */
  get text() {
    return this.#prompt.value;
  }

  /** What was written; a question is taken out of the field, a text to be continued stays. */
  take() {
    const text = this.text;
    if (this.kind === "chat") this.#prompt.value = "";
    return text;
  }

  /** @param {string} text */
  fill(text) {
    this.#prompt.value = text;
    this.focus();
    this.page.onChange();
  }

  focus() {
    this.#prompt.focus();
  }

  /** @param {Kind} kind */
  show(kind) {
    const words = WORDS[kind];
    this.kind = kind;
    byId("prompt-label").textContent = words.label;
    byId("hint").textContent = IS_GLASS ? "" : words.hint;
    byId("send").textContent = words.send;
    this.#prompt.classList.toggle("code", kind === "completion");
    this.#prompt.rows = words.rows;
    byId("examples").replaceChildren(...EXAMPLES[kind].map((text) =>
      element("button", { type: "button", onclick: () => this.fill(text) }, text.trim().split("\n")[0])));
    this.page.onChange();
  }

  /** @param {{isBusy: boolean, canSend: boolean}} now */
  refresh({ isBusy, canSend }) {
    byId("send").disabled = isBusy || !canSend || this.text === "";
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const isModified = event.ctrlKey || event.metaKey;
    const sends = isModified || (this.kind === "chat" && !event.shiftKey && !IS_GLASS);
    // Enter also ends what an input method composes
    if (event.key !== "Enter" || !sends || event.isComposing) return;
    event.preventDefault();
    if (!byId("send").disabled && !byId("send").hidden) this.page.onSend();
  }
}
