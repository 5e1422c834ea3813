/** The page: what is asked, who answers, and what the buttons do. */

import { Access } from "./access.js";
import { Answer } from "./answer.js";
import { Api } from "./api.js";
import { Composer } from "./composer.js";
import { byId, element } from "./elements.js";
import { Following } from "./following.js";
import { Inspector } from "./inspector.js";
import { AnswerView } from "./message.js";
import { chatRequest, completionRequest } from "./options.js";
import { compare, isPlain } from "./side_by_side.js";
import { ServerStatus } from "./status.js";
import { startTheme, storageOf } from "./theme.js";
import { hideTip } from "./tokens.js";
import { Work } from "./work.js";

/**
 * @typedef {object} Exchange a question with its answer
 * @property {string} question
 * @property {import("./composer.js").Kind} kind
 * @property {HTMLElement} node
 * @property {AnswerView | null} view
 * @property {AnswerView[]} views those that are shown: the answer, or two that are compared
 */

const HAS_ROOM_FOR_SETTINGS = "(min-width: 1180px)";
const HAS_ROOM_FOR_TREES = "(min-width: 820px)";
const WANTS_CALM = "(prefers-reduced-motion: reduce)";

class Page {
  /** @type {Exchange[]} */
  exchanges = [];

  constructor() {
    this.api = new Api();
    this.options = byId("options");
    this.inspector = new Inspector();
    this.following = new Following();
    this.access = new Access(this.api, () => this.status.unlock().then(() => this.composer.focus()));
    this.status = new ServerStatus(this.api, { onChange: () => this.refresh(), onKeyWanted: () => this.access.ask() });
    this.work = new Work({ onChange: () => this.refresh(), onRefused: (status) => this.refused(status) });
    this.composer = new Composer({ onSend: () => this.send(), onChange: () => this.refresh() });
    this.showSettings(matchMedia(HAS_ROOM_FOR_SETTINGS).matches);
    this.listen();
    this.changeKind();
    this.status.look();
  }

  listen() {
    byId("stop").addEventListener("click", () => this.work.stop());
    byId("new").addEventListener("click", () => this.clear());
    byId("settings-toggle").addEventListener("click", () => this.showSettings(byId("settings").hidden));
    this.options.addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
    this.options.addEventListener("change", (/** @type {Event} */ event) => {
      const name = /** @type {HTMLInputElement} */ (event.target).name;
      if (name === "kind") this.changeKind();
      if (name === "colours") for (const view of this.views) view.colour(this.options.elements.colours.checked);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      hideTip();
      if (this.work.isBusy) this.work.stop();
      else this.inspector.close();
    });
  }

  get views() {
    return this.exchanges.flatMap(({ views }) => views);
  }

  /** Buttons as far as they can be used now. */
  refresh() {
    const { isBusy } = this.work;
    this.composer.refresh({ isBusy, canSend: this.status.isReady && this.status.name !== "" });
    for (const button of byId("messages").querySelectorAll("button")) button.disabled = isBusy;
    byId("intro").hidden = this.exchanges.length > 0;
  }

  /** @param {number} status */
  refused(status) {
    if (status === 401) this.access.ask();
    else this.status.look();
  }

  /** @param {boolean} isShown */
  showSettings(isShown) {
    byId("settings").hidden = !isShown;
    byId("settings-toggle").setAttribute("aria-expanded", String(isShown));
  }

  changeKind() {
    const kind = this.options.elements.kind.value;
    byId("system-field").hidden = kind !== "chat";
    this.composer.show(kind);
  }

  /** Whether the options can be sent; what cannot is shown, wherever it is folded away. */
  checkOptions() {
    const wrong = this.options.querySelector("input:invalid");
    if (wrong === null) return true;
    this.showSettings(true);
    const folded = wrong.closest("details");
    if (folded !== null) folded.open = true;
    return wrong.reportValidity();
  }

  send() {
    if (!this.checkOptions()) return;
    this.following.begin();
    const { kind } = this.composer;
    const node = element("article", { class: `exchange of-${kind}` });
    /** @type {Exchange} */
    const exchange = { question: this.composer.take(), kind, node, view: null, views: [] };
    this.exchanges.push(exchange);
    byId("messages").append(node);
    this.answer(exchange);
  }

  /** @param {Exchange} exchange */
  async answer(exchange) {
    const asked = this.request(exchange);
    const isChat = exchange.kind === "chat";
    const title = isPlain(asked) ? "Speculation off" : "Answer";
    const onStep = (/** @type {AnswerView} */ chosen, /** @type {number} */ place) => this.inspect(chosen, place);
    const view = new AnswerView(title, new Answer(performance.now()), this.lookOf(exchange), onStep);
    exchange.view = view;
    exchange.views = [view];
    const actions = element("div", { class: "actions" });
    const answers = element("div", { class: "answers" }, view.node);
    exchange.node.classList.remove("compared");
    exchange.node.replaceChildren(...(isChat ? [questionOf(exchange.question)] : []), answers, actions);
    await this.work.run("Answering.", async (signal) => {
      for await (const chunk of this.api.stream(asked.path, asked.body, signal)) {
        view.answer.take(chunk, performance.now());
        view.plan();
        this.follow(view);
      }
      return view.summary;
    }, (message) => view.fail(message));
    view.end();
    this.offer(exchange, asked, actions, answers);
    this.follow(view);
  }

  /** @param {Exchange} exchange */
  request(exchange) {
    const form = new FormData(this.options);
    if (exchange.kind === "completion") return completionRequest(this.status.name, form, exchange.question);
    const before = this.exchanges.slice(0, this.exchanges.indexOf(exchange));
    // a question that got no answer is left out
    const answered = before.filter(({ kind, view }) => kind === "chat" && view?.answer.content);
    const messages = answered.flatMap(({ question, view }) => [
      { role: "user", content: question },
      { role: "assistant", content: view?.answer.content ?? "" },
    ]);
    return chatRequest(this.status.name, form, [...messages, { role: "user", content: exchange.question }]);
  }

  /**
   * What can be done with an answer that is there.
   * @param {Exchange} exchange
   * @param {{path: string, body: any}} asked
   * @param {HTMLElement} actions
   * @param {HTMLElement} answers
   */
  offer(exchange, asked, actions, answers) {
    const { question, kind, view } = exchange;
    if (view === null) return;
    const button = (/** @type {string} */ label, /** @type {string} */ look, /** @type {() => void} */ act) =>
      element("button", { type: "button", class: look, onclick: act }, label);
    const other = `Compare with speculation ${isPlain(asked) ? "on" : "off"}`;
    actions.replaceChildren(
      // half an answer is compared with nothing
      ...(view.answer.finish === null ? [] : [button(other, "primary", () => this.compare(exchange, asked, answers))]),
      button("Regenerate", "of-the-last", () => this.answer(exchange)),
      kind === "chat"
        ? button("Edit the question", "of-the-last", () => this.edit(exchange))
        : button("Continue from here", "of-the-last", () => this.composer.fill(question + view.answer.text)),
    );
  }

  /**
   * @param {Exchange} exchange
   * @param {{path: string, body: any}} asked
   * @param {HTMLElement} answers
   */
  async compare(exchange, asked, answers) {
    const look = this.lookOf(exchange);
    exchange.node.classList.add("compared");
    exchange.views = [];
    this.inspector.close();
    let problem = "";
    const isDone = await this.work.run("Answering twice.", (signal) => compare(this.api, asked, look, answers, {
      signal,
      onStep: (view, place) => this.inspect(view, place),
      onView: (view) => exchange.views.push(view),
    }), (message) => {
      problem = message;
    });
    if (isDone || exchange.view === null) return;
    // half a comparison says nothing: the answer that was there is back
    exchange.node.classList.remove("compared");
    exchange.views = [exchange.view];
    exchange.view.colour(look.isColoured);
    answers.replaceChildren(exchange.view.node);
    if (problem !== "") answers.append(element("p", { class: "problem", role: "alert" }, problem));
  }

  /** @param {Exchange} exchange */
  lookOf({ kind, question }) {
    return { prompt: kind === "chat" ? "" : question, isColoured: this.options.elements.colours.checked };
  }

  /** @param {Exchange} exchange */
  edit(exchange) {
    this.exchanges = this.exchanges.filter((other) => other !== exchange);
    exchange.node.remove();
    this.inspector.close();
    this.composer.fill(exchange.question);
  }

  clear() {
    this.work.stop();
    this.exchanges = [];
    byId("messages").replaceChildren();
    this.inspector.close();
    this.composer.focus();
    this.refresh();
  }

  /** @param {AnswerView} view @param {number} place */
  inspect(view, place) {
    for (const other of this.views) if (other !== view) other.mark(-1);
    this.inspector.show(view, place);
    byId("announcer").textContent = byId("inspector-words").textContent;
  }

  /**
   * Keep the end of an answer in sight, and its newest tree.
   * @param {AnswerView} view
   */
  follow(view) {
    if (!this.views.includes(view)) return;
    this.following.follow();
    // there must be room beside the text, and the eye's rest is the reader's choice
    const isCalm = matchMedia(WANTS_CALM).matches || !matchMedia(HAS_ROOM_FOR_TREES).matches;
    if (this.options.elements.follow.checked && !isCalm) this.inspector.follow(view, performance.now());
  }
}

/** @param {string} question */
function questionOf(question) {
  const heading = element("h3", { class: "unseen" }, "Question");
  return element("div", { class: "question" }, heading, element("p", { class: "prose" }, question));
}

startTheme(storageOf());
new Page();
