// The conversations at the side: listed, found, renamed and deleted.

import { json } from "./api.js";
import { el } from "./turns.js";

const $ = (id) => document.getElementById(id);

/** `on` has what to do: open(id), renamed(), deleted(id), failed(error). */
export class Side {
  constructor(on) {
    this.on = on;
    this.all = [];
    this.current = null;
    this.turn = 0;
    $("search").addEventListener("input", () => this.search());
    $("menu").addEventListener("click", () => this.fold($("menu").ariaExpanded === "true"));
    $("shade").addEventListener("click", () => this.fold(true));
  }

  /** Fold the side away, or out; where there is room for it, it always stays. */
  fold(isFolded) {
    $("menu").ariaExpanded = String(!isFolded);
    document.body.classList.toggle("side-open", !isFolded);
    $("shade").hidden = isFolded;
    if (!isFolded) $("search").focus();
  }

  get isOpen() {
    return document.body.classList.contains("side-open");
  }

  show(conversations, current) {
    this.all = conversations;
    this.current = current;
    if ($("search").value.trim()) this.search();
    else this.draw(conversations, conversations.length ? "" : "Conversations will be listed here.");
  }

  off() {
    $("search").disabled = true;
    this.draw([], "Nothing is kept: the server was started with --no-memory. A reload forgets this conversation.");
  }

  async search() {
    const words = $("search").value.trim();
    const turn = ++this.turn;
    if (!words) return this.show(this.all, this.current);
    try {
      const { conversations } = await json("GET", `/api/search?q=${encodeURIComponent(words)}`);
      if (turn === this.turn) this.draw(conversations, conversations.length ? "" : `Nothing has “${words}” in it.`);
    } catch (error) {
      this.on.failed(error);
    }
  }

  draw(conversations, note) {
    $("list").replaceChildren(...conversations.map((one) => this.entry(one)));
    $("list-note").textContent = note;
  }

  entry(one) {
    const under = one.excerpt || `${when(one.when)}`;
    const open = el("button", { type: "button", className: "open" }, el("span", { className: "title" }, one.title));
    open.append(el("span", { className: "note" }, under));
    if (one.id === this.current) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => {
      this.fold(true);
      this.on.open(one.id);
    });
    const tool = (name, label, act) => {
      const made = el("button", { type: "button", className: "icon", icon: name, title: label });
      made.ariaLabel = `${label} “${one.title}”`;
      made.addEventListener("click", act);
      return made;
    };
    const tools = el("div", { className: "tools" });
    tools.append(tool("pen", "Rename", () => this.rename(one)), tool("bin", "Delete", () => this.remove(one)));
    return el("li", {}, open, tools);
  }

  async rename(one) {
    const title = await dialog({ title: "Rename conversation", value: one.title, yes: "Rename" });
    if (title) await this.change("PATCH", one.id, { title }, () => this.on.renamed());
  }

  async remove(one) {
    const text = `“${one.title}” and all that was said in it will be gone.`;
    if (await dialog({ title: "Delete conversation?", text, yes: "Delete" })) {
      await this.change("DELETE", one.id, undefined, () => this.on.deleted(one.id));
    }
  }

  async change(method, id, content, then) {
    try {
      await json(method, `/api/conversations/${id}`, content);
      await then();
    } catch (error) {
      this.on.failed(error);
    }
  }
}

function when(iso) {
  const then = new Date(iso);
  const isToday = then.toDateString() === new Date().toDateString();
  return isToday
    ? then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
    : then.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" });
}

/** Ask for a yes, or for a text where there is a `value`; resolves to it, or to null. */
function dialog({ title, text = "", value, yes }) {
  $("dialog-title").textContent = title;
  $("dialog-text").textContent = text;
  $("dialog-text").hidden = !text;
  $("dialog-input").hidden = value === undefined;
  $("dialog-input").value = value ?? "";
  $("dialog-yes").textContent = yes;
  const box = $("dialog");
  box.returnValue = "";
  box.showModal();
  if (value !== undefined) $("dialog-input").setSelectionRange(0, value.length, "backward");
  if (value !== undefined) $("dialog-input").focus();
  else $("dialog-yes").focus();
  $("dialog-no").onclick = () => box.close();
  $("dialog-form").onsubmit = (event) => {
    event.preventDefault();
    box.close("yes");
  };
  return new Promise((resolve) => {
    box.onclose = () => resolve(box.returnValue ? (value === undefined ? true : $("dialog-input").value.trim()) : null);
  });
}
