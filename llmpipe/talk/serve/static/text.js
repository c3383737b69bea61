// A model's text as DOM nodes: paragraphs, headings, lists, fenced code, inline code, bold, italics.
// Nothing here reads HTML: every word ends up in a text node.

/** Return what a text looks like; an unclosed fence is code to its end, as while it is still being written. */
export function shown(text) {
  const nodes = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  let at = 0;
  while (at < lines.length) {
    const fence = lines[at].match(/^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/);
    if (fence) {
      const end = closing(lines, at + 1, fence[1]);
      nodes.append(code(lines.slice(at + 1, end).join("\n"), fence[2]));
      at = end + 1;
    } else if (!lines[at].trim()) {
      at += 1;
    } else {
      let end = at + 1;
      const kind = kindOf(lines[at]);
      while (end < lines.length && goesOn(kind, lines[end])) end += 1;
      nodes.append(block(kind, lines.slice(at, end)));
      at = end;
    }
  }
  return nodes;
}

function closing(lines, from, fence) {
  const ends = (line) => line.trim().length >= fence.length && new Set(line.trim() + fence).size === 1;
  const found = lines.slice(from).findIndex(ends);
  return found < 0 ? lines.length : from + found;
}

const ITEM = { ul: /^\s*[-*+]\s+(.*)$/, ol: /^\s*\d{1,9}[.)]\s+(.*)$/ };
const HEADING = /^#{1,6}\s+(.*?)\s*#*$/;

function kindOf(line) {
  if (HEADING.test(line)) return "heading";
  return ITEM.ul.test(line) ? "ul" : ITEM.ol.test(line) ? "ol" : "p";
}

function goesOn(kind, line) {
  if (!line.trim() || kind === "heading" || /^\s{0,3}(```|~~~)/.test(line)) return false;
  const next = kindOf(line);
  return kind === "p" ? next === "p" : next === kind || (next === "p" && /^\s{2,}/.test(line));
}

function block(kind, lines) {
  if (kind === "heading") return filled(make("h3"), lines[0].match(HEADING)[1]);
  if (kind === "p") return filled(make("p"), lines.join("\n").trim());
  const list = make(kind);
  if (kind === "ol") list.start = parseInt(lines[0], 10);
  for (const line of lines) {
    const item = line.match(ITEM[kind]);
    if (item) list.append(filled(make("li"), item[1]));
    else filled(list.lastChild, "\n" + line.trim());
  }
  return list;
}

const INLINE = /(`+)([^`](?:.*?[^`])?)\1(?!`)|\*\*(\S(?:.*?\S)?)\*\*|(?<![\w*])\*([^\s*](?:[^*]*[^\s*])?)\*(?![\w*])/gs;

function filled(parent, text) {
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    parent.append(text.slice(from, found.index));
    if (found[1]) parent.append(make("code", found[2]));
    else if (found[3]) parent.append(filled(make("strong"), found[3]));
    else parent.append(make("em", found[4]));
    from = found.index + found[0].length;
  }
  parent.append(text.slice(from));
  return parent;
}

function code(text, language) {
  const copy = make("button", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const head = make("div");
  head.className = "code-head";
  head.append(make("span", language || "code"), copy);
  const body = make("pre");
  body.tabIndex = 0;
  body.append(make("code", text));
  const whole = make("div");
  whole.className = "code";
  whole.append(head, body);
  return whole;
}

function make(tag, text = "") {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  return node;
}
