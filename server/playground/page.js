/** The page: what is asked, who answers, and what the buttons do. */

import { Answer } from "./answer.js";
import { Api, Refused } from "./api.js";
import { byId, element } from "./elements.js";
import { Inspector } from "./inspector.js";
import { AnswerView } from "./message.js";
import { chatRequest, completionRequest } from "./options.js";
import { compare, isPlain } from "./side_by_side.js";
import { ServerStatus } from "./status.js";
import { startTheme, storageOf } from "./theme.js";

/**
 * @typedef {object} Exchange a question with its answer
 * @property {string} question
 * @property {"chat" | "completion"} kind
 * @property {HTMLElement} node
 * @property {AnswerView | null} view
 * @property {AnswerView[]} views with the one it is compared with
 */

/** The demo model knows Python's standard library and nothing else. */
const EXAMPLES = {
  chat: ["What does textwrap.dedent do?", "What does json.dumps do?", "What does shutil.copytree do?"],
  completion: ["def read_text(path):\n", "class Settings:\n    def __init__(self", "import argparse\n\ndef main():\n"],
};
const HINTS = {
  chat: "Enter sends, Shift + Enter begins a line",
  completion: "Ctrl + Enter sends",
};
// Closer to the end than this, the page follows the text.
const FOLLOWING_PX = 160;
const WIDE = "(min-width: 1180px)";

class Page {
  /** @type {Exchange[]} */
  exchanges = [];
  /** @type {AbortController | null} */
  running = null;

  constructor() {
    this.api = new Api();
    this.inspector = new Inspector();
    this.status = new ServerStatus(this.api, { onChange: () => this.refresh(), onKeyWanted: () => this.wantKey() });
    this.options = byId("options");
    this.prompt = byId("prompt");
    byId("settings").hidden = !matchMedia(WIDE).matches;
    byId("settings-toggle").setAttribute("aria-expanded", String(matchMedia(WIDE).matches));
    this.listen();
    this.changeKind();
    this.status.look();
  }

  /** @returns {"chat" | "completion"} */
  get kind() {
    return this.options.elements.kind.value;
  }

  listen() {
    byId("composer").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.send();
    });
    this.prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.key(event));
    this.prompt.addEventListener("input", () => this.refresh());
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("new").addEventListener("click", () => this.clear());
    byId("access").addEventListener("submit", (/** @type {Event} */ event) => this.unlock(event));
    this.options.addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
    this.options.addEventListener("change", (/** @type {Event} */ event) => {
      const name = /** @type {HTMLInputElement} */ (event.target).name;
      if (name === "kind") this.changeKind();
      if (name === "colours") for (const view of this.views) view.colour(this.options.elements.colours.checked);
    });
    byId("settings-toggle").addEventListener("click", () => {
      byId("settings").hidden = !byId("settings").hidden;
      byId("settings-toggle").setAttribute("aria-expanded", String(!byId("settings").hidden));
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      if (this.running !== null) this.running.abort();
      else this.inspector.close();
    });
  }

  get views() {
    return this.exchanges.flatMap(({ views }) => views);
  }

  /** Buttons as far as they can be used now. */
  refresh() {
    const isBusy = this.running !== null;
    byId("send").disabled = isBusy || !this.status.isReady || this.prompt.value === "" || this.status.name === "";
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
    for (const button of byId("messages").querySelectorAll("button")) button.disabled = isBusy;
    byId("intro").hidden = this.exchanges.length > 0;
  }

  changeKind() {
    const isChat = this.kind === "chat";
    byId("system-field").hidden = !isChat;
    byId("prompt-label").textContent = isChat ? "Your question" : "Text to continue";
    byId("hint").textContent = HINTS[this.kind];
    byId("send").textContent = isChat ? "Send" : "Continue";
    this.prompt.classList.toggle("code", !isChat);
    this.prompt.rows = isChat ? 2 : 8;
    byId("examples").replaceChildren(...EXAMPLES[this.kind].map((text) =>
      element("button", { type: "button", onclick: () => this.fill(text) }, text.trim().split("\n")[0])));
    this.refresh();
  }

  /** @param {string} text */
  fill(text) {
    this.prompt.value = text;
    this.prompt.focus();
    this.refresh();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const sends = this.kind === "chat" ? !event.shiftKey : event.ctrlKey || event.metaKey;
    // Enter also ends what an input method composes
    if (event.key !== "Enter" || !sends || event.isComposing) return;
    event.preventDefault();
    if (!byId("send").disabled && !byId("send").hidden) this.send();
  }

  send() {
    const question = this.prompt.value;
    const kind = this.kind;
    if (!this.options.reportValidity()) return;
    if (kind === "chat") this.prompt.value = "";
    const node = element("article", { class: `exchange of-${kind}` });
    /** @type {Exchange} */
    const exchange = { question, kind, node, view: null, views: [] };
    this.exchanges.push(exchange);
    byId("messages").append(node);
    return this.answer(exchange);
  }

  /** @param {Exchange} exchange */
  async answer(exchange) {
    const form = new FormData(this.options);
    const { name } = this.status;
    const isChat = exchange.kind === "chat";
    const asked = isChat
      ? chatRequest(name, form, this.conversation(exchange))
      : completionRequest(name, form, exchange.question);
    const look = { prompt: isChat ? "" : exchange.question, isColoured: this.options.elements.colours.checked };
    const title = isPlain(asked) ? "Speculation off" : "Answer";
    const onStep = (/** @type {AnswerView} */ chosen, /** @type {number} */ place) => this.inspect(chosen, place);
    const view = new AnswerView(title, new Answer(performance.now()), look, onStep);
    exchange.view = view;
    exchange.views = [view];
    const beside = element("div", { class: "beside" });
    const actions = element("div", { class: "actions" });
    const both = element("div", { class: "both" }, view.node, beside);
    exchange.node.replaceChildren(...(isChat ? [questionOf(exchange.question)] : []), both, actions);
    await this.work(view, "Answering.", async (signal) => {
      for await (const chunk of this.api.stream(asked.path, asked.body, signal)) {
        view.answer.take(chunk, performance.now());
        view.plan();
        this.follow(view);
      }
      return view.summary;
    });
    this.offer(exchange, asked, actions, beside);
    this.follow(view);
  }

  /**
   * The messages before an exchange's answer; questions that got none are left out.
   * @param {Exchange} exchange
   */
  conversation(exchange) {
    const before = this.exchanges.slice(0, this.exchanges.indexOf(exchange));
    const answered = before.filter(({ kind, view }) => kind === "chat" && view?.answer.text);
    const messages = answered.flatMap(({ question, view }) => [
      { role: "user", content: question },
      { role: "assistant", content: view?.answer.text ?? "" },
    ]);
    return [...messages, { role: "user", content: exchange.question }];
  }

  /**
   * Something that can be stopped, and may fail.
   * @param {AnswerView} view told what went wrong
   * @param {string} beginning
   * @param {(signal: AbortSignal) => Promise<string>} task gives what is read out at its end
   */
  async work(view, beginning, task) {
    this.running = new AbortController();
    this.refresh();
    const announcer = byId("announcer");
    announcer.textContent = beginning;
    try {
      announcer.textContent = await task(this.running.signal);
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") announcer.textContent = "Stopped.";
      else if (error instanceof Refused) this.tellProblem(view, error);
      else throw error;
    } finally {
      this.running = null;
      view.update();
      this.refresh();
    }
  }

  /** @param {AnswerView} view @param {Refused} error */
  tellProblem(view, error) {
    view.fail(error.message);
    if (error.status === 401) this.wantKey();
    else this.status.look();
  }

  /**
   * What can be done with an answer that is there.
   * @param {Exchange} exchange
   * @param {{path: string, body: any}} asked
   * @param {HTMLElement} actions
   * @param {HTMLElement} beside
   */
  offer(exchange, asked, actions, beside) {
    const { view } = exchange;
    if (view === null) return;
    /** @type {[string, () => void][]} */
    const offers = [
      ["Regenerate", () => this.answer(exchange)],
      exchange.kind === "chat"
        ? ["Edit the question", () => this.edit(exchange)]
        : ["Continue from here", () => this.fill(exchange.question + view.answer.text)],
    ];
    if (view.answer.finish !== null) {
      const label = `Answer again with speculation ${isPlain(asked) ? "on" : "off"}`;
      offers.unshift([label, () => this.compare(exchange, asked, beside)]);
    }
    actions.replaceChildren(...offers.map(([label, act]) => {
      const look = label.startsWith("Answer") ? "primary" : "of-the-last";
      return element("button", { type: "button", onclick: act, class: look }, label);
    }));
  }

  /**
   * @param {Exchange} exchange
   * @param {{path: string, body: any}} asked
   * @param {HTMLElement} beside
   */
  async compare(exchange, asked, beside) {
    const view = exchange.view;
    if (view === null) return;
    exchange.node.classList.add("compared");
    const onStep = (/** @type {AnswerView} */ chosen, /** @type {number} */ place) => this.inspect(chosen, place);
    const onView = (/** @type {AnswerView} */ second) => {
      exchange.views = [view, second];
    };
    await this.work(view, "Answering again.", (signal) =>
      compare(this.api, view, asked, beside, { signal, onStep, onView }));
  }

  /** @param {Exchange} exchange */
  edit(exchange) {
    this.exchanges = this.exchanges.filter((other) => other !== exchange);
    exchange.node.remove();
    this.fill(exchange.question);
  }

  clear() {
    this.running?.abort();
    this.exchanges = [];
    byId("messages").replaceChildren();
    this.inspector.close();
    this.prompt.focus();
    this.refresh();
  }

  /** @param {AnswerView} view @param {number} place */
  inspect(view, place) {
    for (const other of this.views) if (other !== view) other.mark(-1);
    this.inspector.show(view, place);
  }

  /** Keep the end of an answer in sight, and its newest tree. @param {AnswerView} view */
  follow(view) {
    const page = document.documentElement;
    if (page.scrollHeight - page.scrollTop - page.clientHeight < FOLLOWING_PX) page.scrollTop = page.scrollHeight;
    // beside the text there must be room, and the eye's rest is the reader's choice
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches || !matchMedia("(min-width: 820px)").matches;
    if (this.options.elements.follow.checked && !isCalm) this.inspector.follow(view, performance.now());
  }

  wantKey() {
    if (!byId("access").hidden) return;
    byId("access").hidden = false;
    byId("key").focus();
  }

  /** @param {Event} event */
  async unlock(event) {
    event.preventDefault();
    byId("access-problem").textContent = "";
    this.api.useKey(byId("key").value);
    try {
      await this.api.model();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      byId("access-problem").textContent = error.status === 401 ? "The server does not take this key." : error.message;
      return;
    }
    byId("access").hidden = true;
    byId("key").value = "";
    await this.status.look();
    this.prompt.focus();
  }
}

/** @param {string} question */
function questionOf(question) {
  const heading = element("h3", { class: "unseen" }, "Question");
  return element("div", { class: "question" }, heading, element("p", { class: "prose" }, question));
}

startTheme(storageOf());
new Page();
