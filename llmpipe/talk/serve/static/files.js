// Files to go with the next question: picked or dropped, read here, shown as chips.

import { chip } from "./turns.js";

const $ = (id) => document.getElementById(id);

export class Files {
  /** `trouble` shows a text, or none; `changed` is called after the chips have. */
  constructor(trouble, changed) {
    Object.assign(this, { trouble, changed, chosen: [], suffixes: [], most: 0 });
    $("attach").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", async () => {
      await this.take([...$("file").files]);
      $("file").value = "";
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      this.take([...event.dataTransfer.files]);
    });
  }

  allow({ suffixes, max_bytes: most }) {
    Object.assign(this, { suffixes, most });
    $("file").accept = suffixes.join(",");
  }

  set(chosen) {
    this.chosen = chosen;
    const drop = (file) => () => this.set(this.chosen.filter((one) => one !== file));
    $("chips").replaceChildren(...chosen.map((file) => chip(file.name, drop(file))));
    this.changed();
  }

  async take(list) {
    this.trouble("");
    for (const file of list) {
      const reason = this.wrong(file);
      if (reason) {
        this.trouble(`${file.name} ${reason}`);
        continue;
      }
      try {
        const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
        this.set([...this.chosen.filter((one) => one.name !== file.name), { name: file.name, text }]);
      } catch {
        this.trouble(`${file.name} is no text in UTF-8`);
      }
    }
  }

  wrong(file) {
    if (!this.suffixes.some((one) => file.name.toLowerCase().endsWith(one))) return `is none of ${this.suffixes.join(", ")}`;
    return file.size > this.most ? `is larger than ${this.most.toLocaleString()} bytes, the most that is read` : "";
  }
}
