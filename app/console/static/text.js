/** Text of agents and other strangers, made fit to be looked at. It is data: it only ever becomes text nodes. */

/** Characters of one text that are in the page before somebody asks for all of it. */
const LIMIT = 20_000;

/** What a terminal would obey and not show: CSI; OSC; DCS, SOS, PM and APC, each with its end; two-character ones. */
const ANSI = new RegExp(
  "\\x1b\\[[0-?]*[ -/]*[@-~]" +
    "|\\x1b\\][^\\x07\\x1b\\x9c]{0,4096}(?:\\x07|\\x1b\\\\|\\x9c)" +
    "|\\x1b[PX^_][^\\x1b\\x9c]{0,4096}(?:\\x1b\\\\|\\x9c)" +
    "|\\x1b[ -/]*[0-OQ-WYZ`-~]",
  "g",
);

/** What has no look of its own: C0 but tab and newline, DEL, C1, bidi controls, zero width, line separators, tags. */
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\u{e0000}-\u{e007f}]/gu;

function seen(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
}

/** `text` with everything invisible made visible and nothing left out: for what somebody is asked to approve. */
export function exact(text) {
  return text.replace(/\r+\n/g, "\n").replace(UNSEEN, seen);
}

/** `text` without ANSI sequences, the rest as `exact` gives it. */
export function plain(text) {
  return exact(text.includes("\u001b") ? text.replace(ANSI, "") : text);
}

/** `value` in one line of at most `length` characters: for titles and lists. */
export function line(value, length = 200) {
  const text = exact(clip(String(value ?? ""), length * 4)).replace(/\s+/g, " ").trim();
  return text.length > length ? `${clip(text, length - 1)}\u2026` : text;
}

/** The first `length` characters of `text`, no character cut in two. */
function clip(text, length) {
  if (text.length <= length) return text;
  const last = text.charCodeAt(length - 1);
  return text.slice(0, last >= 0xd800 && last < 0xdc00 ? length - 1 : length);
}

/** A text in the page that may grow, and of which only the beginning is in the page when it is long. */
export class TextView {
  #text = document.createTextNode("");
  #more = null;
  #raw = "";
  #limit;
  #read;

  /** `tag` is the element's name; `read` is `plain` or `exact`. What is read exactly is never clipped. */
  constructor(tag, className, read = plain) {
    this.#read = read;
    this.#limit = read === exact ? Infinity : LIMIT;
    this.body = document.createElement(tag);
    this.body.className = className;
    this.body.dir = "auto";
    this.body.append(this.#text);
    this.element = document.createElement("div");
    this.element.className = "text-view";
    this.element.append(this.body);
  }

  set(raw) {
    this.#raw = raw;
    const shown = this.#read(clip(raw, this.#limit));
    const before = this.#text.data;
    // What is already there stays as it is, so that a selection in it survives.
    if (shown !== before) {
      if (shown.startsWith(before)) this.#text.appendData(shown.slice(before.length));
      else this.#text.data = shown;
    }
    this.#offer(raw.length - this.#limit);
  }

  #offer(hidden) {
    if (hidden <= 0) {
      this.#more?.remove();
      this.#more = null;
      return;
    }
    if (this.#more === null) {
      this.#more = document.createElement("button");
      this.#more.type = "button";
      this.#more.className = "quiet small show-all";
      this.#more.addEventListener("click", () => {
        this.#limit = Infinity;
        this.set(this.#raw);
      });
      this.element.append(this.#more);
    }
    this.#more.textContent = `Show all (${hidden.toLocaleString("en")} more characters)`;
  }
}
