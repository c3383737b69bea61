// The page: what is asked, of whom, and what comes back.

import { events, json } from "./api.js";
import { Files } from "./files.js";
import { Modes } from "./modes.js";
import { Side } from "./side.js";
import { AnswerTurn, el, userTurn } from "./turns.js";

const $ = (id) => document.getElementById(id);
const MODERATED = "Questions and answers are moderated: what is held back says by which rule, and how to appeal.";
const known = { models: [], memory: true };
let conversation = null; // its id, once something was said in it
let said = []; // turns that only this tab knows, without a memory
let answering = null; // the AbortController of the answer under way

const side = new Side({
  open: (id) => (location.hash = String(id)),
  renamed: refresh,
  deleted: async (id) => (id === conversation ? begin() : undefined, refresh()),
  failed,
});

const files = new Files(trouble, () => (grow(), $("text").focus()));
const modes = new Modes($("modes"), trouble);

// ---- What there is ---------------------------------------------------------------------------

async function refresh() {
  const state = await json("GET", "/api/state");
  Object.assign(known, state);
  if (state.memory) side.show(state.conversations, conversation);
  else side.off();
}

async function start() {
  try {
    await refresh();
  } catch (error) {
    return failed(error);
  }
  $("model").replaceChildren(...known.models.map(({ name }) => new Option(label(name), name)));
  choose(known.models.findLast((one) => one.chats)?.name ?? known.models.at(-1)?.name);
  $("compare").hidden = known.models.length < 2;
  files.allow(known.files);
  modes.show(known.modes);
  await openNamed();
}

/** A short name: the stage, or the end of a path, where that tells the models apart. */
function label(name) {
  const short = (one) => one.split(/[:/#]/).filter(Boolean).at(-1) ?? one;
  return known.models.filter((one) => short(one.name) === short(name)).length > 1 ? name : short(name);
}

function choose(name) {
  if (known.models.some((one) => one.name === name)) $("model").value = name;
  const model = known.models.find((one) => one.name === $("model").value);
  const kept = compared();
  const others = known.models.filter((one) => one !== model);
  $("others").replaceChildren(...others.map((one) => other(one.name, kept.includes(one.name))));
  count();
  $("welcome-title").textContent = model ? `Talk to ${label(model.name)}` : "No model is served";
  $("welcome-note").textContent = !model
    ? ""
    : model.chats
      ? `It sees ${model.context.toLocaleString()} tokens at once.`
      : "It goes on with a text and was not taught to answer: begin one, and see.";
  if (known.moderated) $("welcome-note").textContent += ` ${MODERATED}`;
}

function other(name, isChecked) {
  const box = el("input", { type: "checkbox", value: name, checked: isChecked });
  box.addEventListener("change", count);
  return el("label", { title: name }, box, el("span", {}, label(name)));
}

const compared = () => [...$("others").querySelectorAll("input:checked")].map((box) => box.value);

function count() {
  const more = compared().length;
  $("compare-label").textContent = more ? `Compare ${more + 1}` : "Compare";
  $("compare").classList.toggle("on", more > 0);
}

// ---- Conversations ---------------------------------------------------------------------------

function begin() {
  answering?.abort();
  conversation = null;
  said = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  trouble("");
  if (location.hash) history.replaceState(null, "", "/");
  if (known.memory) side.show(known.conversations, null);
  $("text").focus();
}

async function openNamed() {
  const id = Number(location.hash.slice(1));
  if (!id) return begin();
  if (id === conversation) return;
  answering?.abort();
  try {
    show(await json("GET", `/api/conversations/${id}`));
  } catch (error) {
    begin();
    failed(error);
  }
}

function show(opened) {
  conversation = opened.id;
  trouble("");
  $("welcome").hidden = true;
  $("turns").replaceChildren(...opened.turns.map((turn) => (turn.role === "user" ? userTurn(turn) : kept(turn))));
  side.show(known.conversations, conversation);
  const last = opened.turns.findLast((turn) => turn.role === "assistant");
  choose(last ? (last.preferred ?? last.answers[0].model) : opened.model);
  $("scroll").scrollTop = $("scroll").scrollHeight;
  $("text").focus();
}

function kept(turn) {
  const drawn = new AnswerTurn(turn.answers.map((one) => one.model), label);
  for (const one of turn.answers) {
    const answer = drawn.answers.get(one.model);
    answer.text = one.text;
    answer.draw();
    for (const note of one.notes ?? []) answer.note(note);
  }
  judged(drawn, turn.message, turn.thumbs, turn.is_last && !turn.preferred);
  if (turn.preferred) drawn.prefer(turn.preferred);
  return drawn.node;
}

/** Offer thumbs, and to say which answer is better, where the conversation is still open for that. */
function judged(drawn, message, given, isOpen) {
  const at = { conversation, message };
  drawn.rate((model, good) => json("POST", "/api/thumb", { ...at, model, good }).catch(failed), given);
  if (!isOpen) return;
  drawn.offer(async (model) => {
    try {
      at.message = (await json("POST", "/api/prefer", { ...at, chosen: model })).message;
      drawn.prefer(model);
    } catch (error) {
      failed(error);
    }
  });
}

// ---- Asking ----------------------------------------------------------------------------------

async function say() {
  const text = $("text").value.trim();
  if (answering || (!text && !files.chosen.length) || !$("model").value) return;
  const question = { text, model: $("model").value, compare: compared(), conversation, attachments: files.chosen };
  question.mode = modes.chosen;
  if (!known.memory) question.history = said;
  const asked = userTurn({ text, files: files.chosen.map((file) => file.name) });
  const drawn = new AnswerTurn([question.model, ...question.compare], label);
  for (const better of $("turns").querySelectorAll(".better")) better.remove();
  $("turns").append(asked, drawn.node);
  $("welcome").hidden = true;
  $("text").value = "";
  files.set([]);
  trouble("");
  const isKept = await listen(question, drawn, follower(asked, question.compare.length > 0));
  if (!isKept && asked.isConnected) {
    if (question.conversation === null) forget();
    asked.remove();
    drawn.node.remove();
    if (!$("turns").childElementCount) $("welcome").hidden = false;
    if (!$("text").value) $("text").value = text;
    files.set(question.attachments);
  }
  await refresh().catch(failed);
}

/** Read an answer to its end; returns whether there is any of it. */
async function listen(question, drawn, follow) {
  const stop = (answering = new AbortController());
  busy(true);
  for (const answer of drawn.answers.values()) answer.begin();
  follow();
  let content = question.text;
  const turns = said; // of this conversation, also when another is begun meanwhile
  try {
    for await (const event of events(question, stop.signal)) {
      if (event.content !== undefined) content = begun(event);
      else if (event.model) heard(event, drawn);
      else if (event.message) judged(drawn, event.message, {}, true);
      follow();
    }
  } catch (error) {
    if (error.name !== "AbortError") failed(error);
  }
  drawn.stop();
  follow();
  if (answering === stop) answering = null;
  busy(Boolean(answering));
  if (drawn.content && !known.memory) {
    turns.push({ role: "user", content }, { role: "assistant", content: drawn.content });
  }
  return Boolean(drawn.content);
}

function begun({ conversation: id, content }) {
  if (id !== null && id !== conversation) {
    conversation = id;
    history.replaceState(null, "", `#${id}`);
    refresh().catch(failed);
  }
  return content;
}

function forget() {
  conversation = null;
  history.replaceState(null, "", "/");
}

function heard(event, drawn) {
  const answer = drawn.answers.get(event.model);
  if (event.text) answer.add(event.text);
  if (event.note) answer.note(event.note);
  if (event.ask) answer.ask(event, known.memory, (said) => consent(event.ask, said));
  if (event.asked) answer.asked(event.answer);
  if (event.error) {
    answer.fail(event.error);
    if (drawn.models.length === 1) trouble(event.error);
  }
  if (event.finish) {
    const size = event.tokens ? `${event.tokens} tokens, ${event.took_s.toFixed(1)} s` : "";
    answer.end(event.finish === "length" ? `${size}, cut off at the longest answer allowed` : size);
  }
}

/** Tell what the user says to a question of a tool. */
const consent = (ask, answer) => json("POST", "/api/consent", { ask, answer }).catch(failed);

function busy(isBusy) {
  $("ask").classList.toggle("busy", isBusy);
  $("send").ariaLabel = $("send").title = isBusy ? "Stop" : "Send";
}

/** Return what keeps the newest words in sight, or the question while answers stand side by side; not a reader's hand. */
function follower(asked, isMany) {
  const box = $("scroll");
  let at = null;
  return () =>
    requestAnimationFrame(() => {
      const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 4;
      if (at !== null && Math.abs(box.scrollTop - at) > 4 && !isAtEnd) return;
      box.scrollTop = isMany ? asked.offsetTop - box.offsetTop - 12 : box.scrollHeight;
      at = box.scrollTop;
    });
}

// ---- Hands -----------------------------------------------------------------------------------

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function failed(error) {
  trouble(error.status === 401 ? "You are signed out: open a new link of llmpipe serve." : error.message);
}

function grow() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
}

function key(event) {
  if (event.key !== "Escape" || $("dialog").open) return;
  if ($("compare").open) $("compare").open = false;
  else if (side.isOpen) side.fold(true);
  else answering?.abort();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) answering.abort();
  else say();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  say();
});
$("text").addEventListener("input", grow);
$("model").addEventListener("change", () => choose($("model").value));
$("new").addEventListener("click", () => (side.fold(true), begin()));
document.addEventListener("click", (event) => {
  if (!$("compare").contains(event.target)) $("compare").open = false;
});
document.addEventListener("keydown", key);
window.addEventListener("hashchange", openNamed);
start();
