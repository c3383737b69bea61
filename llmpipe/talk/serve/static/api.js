// The server: JSON, and an answer as JSON lines.

/** What the server refused, in its words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(method, path, content, signal) {
  const body = content === undefined ? undefined : JSON.stringify(content);
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const reply = await fetch(path, { method, body, headers, signal, credentials: "same-origin" });
  if (!reply.ok) throw new Refused(reply.status, await reasonOf(reply));
  return reply;
}

export const json = async (...call) => (await ask(...call)).json();

/** Yield the events of an answer. */
export async function* events(question, signal) {
  const reply = await ask("POST", "/api/say", question, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

async function reasonOf(reply) {
  try {
    const said = await reply.json();
    const reason = said.error?.message ?? said.detail;
    return typeof reason === "string" ? reason : "the server does not understand this request";
  } catch {
    return `the server answered with status ${reply.status}`;
  }
}
