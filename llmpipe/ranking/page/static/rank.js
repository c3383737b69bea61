// Ranking: one question at a time. Answers are known by where they stand; nothing here knows which model gave them.

import { json } from "/static/api.js";
import { el } from "/static/turns.js";
import { shown } from "/static/text.js";

const WAIT_MS = 1000;
const ROLES = { user: "Asked", assistant: "Answered before", system: "Told beforehand" };
const $ = (id) => document.getElementById(id);

let question = null;
let places = []; // of each answer, or 0
let typed = []; // answers in the order of their keys
let tie = false; // whether the next key ties with the one before
let isBusy = false;
let begun = 0;

function show(told) {
  $("who").textContent = told.annotator;
  trouble(told.trouble);
  question = told.question;
  $("asked").hidden = $("bar").hidden = !question;
  if (!question) {
    $("told").textContent = told.state === "done" ? "All is ranked. Thank you." : "Answers are being sampled …";
    $("count").textContent = told.state === "done" ? "done" : "";
    if (told.state === "done") $("progress").value = $("progress").max;
    else setTimeout(() => call("GET", "/api/question"), WAIT_MS);
    return;
  }
  places = question.before ? [...question.before] : question.answers.map(() => 0);
  typed = [];
  tie = false;
  begun = performance.now();
  $("progress").max = question.of;
  $("progress").value = question.done;
  $("count").textContent = `${question.done + 1} of ${question.of}`;
  $("told").textContent = "";
  $("criterion").textContent = question.criterion;
  $("guideline").textContent = question.guideline;
  $("comment").value = question.comment;
  $("prompt").replaceChildren(...question.messages.map(turn));
  $("answers").replaceChildren(...question.answers.map(card));
  draw();
  scrollTo(0, 0);
  $("criterion").focus({ preventScroll: true });
}

const turn = ({ role, content }) =>
  el("div", { className: `said ${role}` }, el("span", { className: "note" }, ROLES[role] ?? role), el("div", { className: "bubble" }, content));

function card(text, number) {
  const words = el("div", { className: "words" });
  words.append(shown(text));
  const choices = question.answers.map((_, at) => {
    const input = el("input", { type: "radio", name: `answer-${number}`, value: String(at + 1) });
    input.addEventListener("change", () => place(number, at + 1));
    const name = at === 0 ? "best" : at === question.answers.length - 1 ? "last" : "";
    return el("label", { title: name }, input, el("span", {}, String(at + 1)));
  });
  const group = el("fieldset", { className: "places" }, el("legend", {}, `Place of answer ${number + 1}`), ...choices);
  return el("li", { className: "card", "aria-label": `Answer ${number + 1}` }, el("h2", {}, String(number + 1)), words, group);
}

function place(number, at) {
  places[number] = at;
  typed = typed.filter((one) => one !== number);
  draw();
}

function draw() {
  for (const [number, at] of places.entries()) {
    const node = $("answers").children[number];
    node.classList.toggle("placed", at > 0);
    for (const input of node.querySelectorAll("input")) input.checked = Number(input.value) === at;
  }
  $("order").textContent = order() + (tie ? " =" : "");
  $("keep").disabled = places.filter((at) => !at).length > 1;
}

/** Return the places as an order, such as 2 > 1 = 3. */
function order() {
  const ranks = [...new Set(places.filter(Boolean))].sort((a, b) => a - b);
  return ranks.map((at) => places.flatMap((one, number) => (one === at ? [number + 1] : [])).join(" = ")).join(" > ");
}

function type(number) {
  if (number >= places.length || places[number]) return;
  const last = Math.max(...places);
  places[number] = tie && last ? last : Math.min(last + 1, places.length);
  typed.push(number);
  tie = false;
  draw();
}

function takeBack() {
  const number = typed.pop() ?? places.lastIndexOf(Math.max(...places));
  places[number] = 0;
  tie = false;
  draw();
}

function keep(verdict) {
  if (verdict === "ranked" && $("keep").disabled) {
    $("told").textContent = "Some answers have no place yet.";
    return;
  }
  const used = [...new Set(places.filter(Boolean))].sort((a, b) => a - b);
  const ranks = places.map((at) => (at ? used.indexOf(at) + 1 : used.length + 1)); // one without a place is the last
  call("POST", "/api/ranking", {
    question: question.id,
    verdict,
    ranks: verdict === "ranked" ? ranks : null,
    comment: $("comment").value,
    seconds: Math.round((performance.now() - begun) / 100) / 10,
  });
}

async function call(...request) {
  if (isBusy) return;
  isBusy = true;
  try {
    show(await json(...request));
  } catch (refused) {
    trouble(refused.message);
  } finally {
    isBusy = false;
  }
}

function trouble(text) {
  $("trouble").textContent = text ?? "";
  $("trouble").hidden = !text;
}

const KEYS = {
  b: () => keep("bad"),
  s: () => keep("skipped"),
  u: () => call("POST", "/api/undo"),
  c: () => $("comment").focus(),
  "=": () => {
    tie = true;
    draw();
  },
  Backspace: takeBack,
  Enter: () => keep("ranked"),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isBusy) return;
  if (event.target === $("comment")) {
    if (event.key === "Escape") $("criterion").focus();
    return;
  }
  if (event.key === "Enter" && event.target.closest("button, a")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "u" || question) {
    if (/^[1-9]$/.test(key)) type(Number(key) - 1);
    else if (KEYS[key]) KEYS[key]();
    else return;
    event.preventDefault();
  }
});
$("keep").addEventListener("click", () => keep("ranked"));
$("bad").addEventListener("click", () => keep("bad"));
$("skip").addEventListener("click", () => keep("skipped"));
$("undo").addEventListener("click", () => call("POST", "/api/undo"));
call("GET", "/api/question");
