// How answers are made: a row of buttons, one of them pressed.

import { el } from "./turns.js";

const TITLES = { chat: "An answer of the model alone, or with the tools that it has", "deep-search": "Searches the web and names its sources" };

export class Modes {
  /** `trouble` shows a text, or none. */
  constructor(box, trouble) {
    Object.assign(this, { box, trouble, chosen: "chat" });
  }

  show(modes) {
    this.box.replaceChildren(...modes.map((one) => this.button(one)));
    this.choose(this.chosen);
  }

  button({ name, missing }) {
    const button = el("button", { type: "button", title: missing ?? TITLES[name] ?? name }, name);
    button.value = name;
    if (missing) button.ariaDisabled = "true";
    button.addEventListener("click", () => (missing ? this.trouble(`${name}: ${missing}`) : this.choose(name)));
    return button;
  }

  choose(name) {
    this.chosen = name;
    this.trouble("");
    for (const button of this.box.children) button.ariaPressed = String(button.value === name);
  }
}
