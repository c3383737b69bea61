// The turns of a conversation as they stand on the page.

import { shown } from "./text.js";

const icon = (name) => {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  drawn.setAttribute("aria-hidden", "true");
  drawn.append(use);
  return drawn;
};

/** Make an element; strings among its children become text. */
export function el(tag, settings = {}, ...children) {
  const node = document.createElement(tag);
  const { icon: drawn, ...rest } = settings;
  for (const [key, value] of Object.entries(rest)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  if (drawn) node.append(icon(drawn));
  node.append(...children);
  return node;
}

/** Return what a person said, with the names of the files that went along. */
export function userTurn({ text, files }) {
  const turn = el("article", { className: "turn user", "aria-label": "You" });
  if (files.length) turn.append(el("ul", { className: "chips" }, ...files.map((name) => chip(name))));
  if (text) turn.append(el("div", { className: "bubble" }, text));
  return turn;
}

export function chip(name, onRemove) {
  const node = el("li", { className: "chip", icon: "file", title: name }, el("span", {}, name));
  if (onRemove) {
    const remove = el("button", { type: "button", className: "icon", icon: "x", "aria-label": `Remove ${name}` });
    remove.addEventListener("click", onRemove);
    node.append(remove);
  }
  return node;
}

/** The answers to one question: of one model, or of several side by side. */
export class AnswerTurn {
  constructor(models, label) {
    this.node = el("article", { className: models.length > 1 ? "turn answers many" : "turn answers" });
    this.node.setAttribute("aria-label", models.length > 1 ? "Answers side by side" : `Answer of ${label(models[0])}`);
    this.answers = new Map(models.map((model) => [model, new Answer(model, label(model))]));
    this.node.append(...[...this.answers.values()].map((one) => one.node));
  }

  /** Offer to say which is better; `choose` is called with a model's name. */
  offer(choose) {
    const given = [...this.answers.values()].filter((one) => one.text);
    if (given.length > 1) given.forEach((one) => one.offer(() => choose(one.model)));
  }

  /** Offer thumbs; `send` is called with a model's name and whether its answer is good. */
  rate(send, given = {}) {
    for (const one of this.answers.values()) if (one.text) one.rate((isGood) => send(one.model, isGood), given[one.model]);
  }

  prefer(model) {
    for (const one of this.answers.values()) one.mark(one.model === model);
  }

  get content() {
    return [...this.answers.values()].map((one) => one.text).find(Boolean) ?? "";
  }

  get models() {
    return [...this.answers.keys()];
  }

  stop() {
    for (const one of this.answers.values()) if (one.isBusy) one.end("stopped");
  }
}

class Answer {
  constructor(model, label) {
    this.model = model;
    this.label = label;
    this.text = "";
    this.isBusy = false;
    this.words = el("div", { className: "words" });
    this.foot = el("footer", {});
    this.name = el("h2", { title: model }, label);
    this.steps = el("ul", { className: "steps" });
    this.node = el("div", { className: "answer" }, this.name, this.steps, this.words, this.foot);
  }

  begin() {
    this.isBusy = true;
    this.node.classList.add("busy");
    this.node.setAttribute("aria-busy", "true");
  }

  add(text) {
    this.text += text;
    this.due ??= requestAnimationFrame(() => this.draw());
  }

  /** Show a step on the way to the answer. */
  note(text) {
    this.steps.append(el("li", {}, text));
  }

  /** Ask whether a tool may be called; `reply` is called with what is said. Nothing is focused: no key allows it by chance. */
  ask({ tool, arguments: given, why }, isKept, reply) {
    this.asked();
    const choices = [["once", "Allow once"], ...(isKept ? [["conversation", "Allow in this conversation"]] : []), ["no", "Refuse"]];
    const buttons = choices.map(([said, label]) => {
      const button = el("button", { type: "button", className: said === "once" ? "main" : "" }, label);
      button.addEventListener("click", () => (this.asked(said), reply(said)));
      return button;
    });
    const text = el("p", {}, el("strong", {}, tool), " ", el("code", {}, given));
    const row = el("div", { className: "row" }, ...buttons);
    this.question = el("div", { className: "consent" }, text, el("p", { className: "note" }, `The model wants this call: ${why}.`), row);
    this.question.setAttribute("role", "group");
    this.question.setAttribute("aria-label", `May ${tool} be called?`);
    this.steps.after(this.question);
  }

  /** Take the question away. */
  asked() {
    this.question?.remove();
    this.question = undefined;
  }

  draw() {
    cancelAnimationFrame(this.due);
    this.due = undefined;
    this.words.replaceChildren(shown(this.text));
  }

  end(note = "") {
    this.draw();
    this.asked();
    this.isBusy = false;
    this.node.classList.remove("busy");
    this.node.removeAttribute("aria-busy");
    if (note) this.foot.prepend(el("span", { className: "note" }, note));
  }

  fail(reason) {
    this.end();
    this.words.append(el("p", { className: "failed" }, reason));
  }

  offer(choose) {
    const label = `The answer of ${this.label} is better`;
    this.better = el("button", { type: "button", className: "better", icon: "thumb", "aria-label": label }, "Better");
    this.better.addEventListener("click", choose);
    this.foot.append(this.better);
  }

  rate(send, given) {
    const buttons = [true, false].map((isGood) => {
      const label = `The answer of ${this.label} is ${isGood ? "good" : "bad"}`;
      const className = `icon thumb${isGood ? "" : " down"}`;
      const button = el("button", { type: "button", className, icon: "thumb", "aria-label": label, title: isGood ? "Good" : "Bad" });
      button.addEventListener("click", async () => {
        if (await send(isGood)) press(isGood);
      });
      return button;
    });
    const press = (isGood) => buttons.forEach((one, at) => one.setAttribute("aria-pressed", String((at === 0) === isGood)));
    if (typeof given === "boolean") press(given);
    this.foot.append(...buttons);
  }

  mark(isBest) {
    this.better?.remove();
    this.node.classList.add(isBest ? "best" : "other");
    const title = "The conversation goes on with this answer";
    if (isBest) this.foot.append(el("span", { className: "chosen", icon: "thumb", title }, "Preferred"));
  }
}
