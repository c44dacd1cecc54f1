/**
 * The kinds of things in a session's log. An item takes events into its model at once, and makes or changes its
 * elements only in `render`, which the log calls once a frame for those that changed.
 */

import { badge, clock, node, setBadge } from "./dom.js";
import { exact, line, TextView } from "./text.js";

/** A diff of more lines, or of a longer one, is shown without colours, to spare elements and to be clipped. */
const MAX_COLOURED_LINES = 300;
const MAX_COLOURED_LINE = 2000;

/** Lines around a change that are shown with it. */
const CONTEXT = 3;

/** What every item has: `element`, null until it was rendered. */
class Item {
  element = null;

  /** The item's element, as its model now is. */
  render() {
    this.element ??= this.build();
    this.update();
    return this.element;
  }

  update() {}
}

/** The prompt that started a turn, or one that somebody else gave the agent. */
export class Prompt extends Item {
  constructor(text, at, from = "") {
    super();
    Object.assign(this, { text, at, from });
  }

  build() {
    this.view = new TextView("p", "text");
    const head = node("p", "item-head", node("span", "who", this.from || "Prompt"), clock(this.at));
    return node("li", "item prompt-item", head, this.view.element);
  }

  update() {
    this.view.set(this.text);
  }
}

/** A message of the agent, growing until it is complete. */
export class Message extends Item {
  text = "";
  done = false;

  build() {
    this.view = new TextView("p", "text");
    return node("li", "item message", this.view.element);
  }

  update() {
    this.view.set(this.text);
    this.element.classList.toggle("growing", !this.done);
  }
}

/** What the agent thinks, folded. */
export class Reasoning extends Item {
  text = "";
  done = false;

  build() {
    this.view = new TextView("p", "text muted");
    this.summary = node("summary", "");
    return node("li", "item reasoning", node("details", "", this.summary, this.view.element));
  }

  update() {
    this.view.set(this.text);
    const more = this.done ? "" : "\u2026";
    this.summary.textContent = `Reasoning${more}`;
  }
}

/** One tool call: what it is called, how it stands, and what it does in the shape of its kind. */
export class ToolCall extends Item {
  /** The event's data, whole each time. */
  data = null;

  build() {
    this.kind = node("span", "kind");
    this.title = node("span", "title");
    this.status = badge("");
    this.body = node("div", "detail");
    return node("li", "item tool", node("p", "item-head", this.kind, this.title, this.status), this.body);
  }

  update() {
    const { kind, title, name, status, locations, detail, error } = this.data;
    this.kind.textContent = kind.replaceAll("_", " ");
    this.title.textContent = line(title || name || kind, 400);
    setBadge(this.status, status.replaceAll("_", " "), status);
    // Redrawn whole: it changes a few times in a call's life, and only while nobody reads it yet.
    const places = (locations ?? []).filter(({ path }) => path !== detail?.path);
    this.body.replaceChildren(...places.slice(0, 20).map(place), ...details(detail, { title }));
    if (error) this.body.append(pre("Error", error, "error"));
  }
}

const place = ({ path, line: at }) => node("p", "place", line(at ? `${path}:${at}` : path, 1000));

/** The agent's plan as it stands. */
export class Plan extends Item {
  entries = [];

  build() {
    this.list = node("ol", "steps");
    return node("li", "item plan", node("p", "item-head", node("span", "who", "Plan")), this.list);
  }

  update() {
    this.list.replaceChildren(
      ...this.entries.slice(0, 100).map(({ text, status }) => {
        const step = node("li", "", line(text, 500), node("span", "unseen", ` (${status.replaceAll("_", " ")})`));
        step.dataset.status = status;
        return step;
      }),
    );
  }
}

/** One line about something that happened. */
export class Line extends Item {
  /** `tone` is `info`, `good`, `warning` or `error`; `action` is a button or null. */
  constructor(text, { tone = "info", at = null, action = null } = {}) {
    super();
    Object.assign(this, { text, tone, at, action });
  }

  build() {
    this.words = node("span", "words");
    const element = node("li", "item line", this.words);
    if (this.action !== null) element.append(this.action);
    if (this.at !== null) element.append(clock(this.at));
    return element;
  }

  update() {
    this.words.textContent = line(this.text, 1000);
    this.element.dataset.tone = this.tone;
    if (this.action !== null) this.action.hidden = this.isOver === true;
  }
}

/**
 * The elements that show a `detail`, each string in a block of its own. What already stands there as `title` is
 * not repeated; `read` is `exact` where it is approved.
 */
export function details(detail, { title = null, read = undefined } = {}) {
  const shown = [];
  const block = (label, value, className) => {
    if (value !== null && value !== undefined && value !== "") shown.push(pre(label, value, className, read));
  };
  switch (detail?.type) {
    case "shell":
      if (detail.command !== title || title.length > 200 || title.includes("\n")) {
        block(detail.cwd ? `Command, in ${line(detail.cwd)}` : "Command", detail.command, "command");
      }
      block(detail.exit_code ? `Output, exit code ${detail.exit_code}` : "Output", detail.output);
      break;
    case "read":
    case "write":
      block(span(detail), detail.content ?? "");
      if (shown.length === 0) shown.push(place(detail));
      break;
    case "edit":
      shown.push(place(detail), diff(detail));
      break;
    case "search":
      block("Query", detail.query, "command");
      block("Paths", (detail.paths ?? []).join("\n"));
      block("Matches", detail.matches);
      break;
    case "fetch":
      block(detail.status ? `URL, status ${detail.status}` : "URL", detail.url, "command");
      block("Result", detail.result);
      break;
    case "sub_agent":
      block("Task", detail.description);
      block("Log", detail.log);
      break;
    case "plan":
      block("Plan", detail.text);
      break;
    case "text":
      block(detail.label ? line(detail.label) : "Text", detail.text);
      break;
    case undefined:
      break;
    default: {
      const { type: _, ...rest } = detail;
      for (const [name, value] of Object.entries(rest)) {
        if (!isEmpty(value)) block(line(name), typeof value === "string" ? value : json(value));
      }
    }
  }
  if (detail?.truncated) shown.push(node("p", "muted", `Shortened by the server from ${detail.bytes} bytes.`));
  return shown;
}

const span = ({ path, offset, limit }) =>
  line(path) + (offset ? `, from line ${offset}` : "") + (limit ? `, ${limit} lines` : "");

/** A value as JSON, or the empty string for what says nothing. */
export const json = (value) => (isEmpty(value) ? "" : JSON.stringify(value, null, 2));

const isEmpty = (value) =>
  value === null || value === undefined || (typeof value === "object" && Object.keys(value).length === 0);

/** A labelled block of text as it is, each blank in place. */
export function pre(label, text, className = "", read = undefined) {
  const view = new TextView("pre", className, read);
  makeScrollable(view.body, label);
  view.set(String(text));
  return node("figure", "block", node("figcaption", "muted", label), view.element);
}

/** What scrolls has to be reached by the keyboard, and to have a name there. */
function makeScrollable(element, label) {
  element.tabIndex = 0;
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", label);
}

function diff({ diff: unified, old_text: before, new_text: after }) {
  const lines = unified ? unified.replace(/\n$/, "").split("\n") : compare(rows(before), rows(after));
  if (lines.length > MAX_COLOURED_LINES || lines.some(({ length }) => length > MAX_COLOURED_LINE)) {
    return pre("Diff", lines.join("\n"), "", exact);
  }
  const body = node("pre", "diff");
  makeScrollable(body, "Diff");
  for (const text of lines) {
    const row = node("span", "", `${exact(text)}\n`);
    if (/^[-+](?!--|\+\+)/.test(text)) row.className = text[0] === "+" ? "added" : "removed";
    body.append(row);
  }
  return node("figure", "block", node("figcaption", "muted", "Diff"), body);
}

const rows = (text) => (text ? text.replace(/\n$/, "").split("\n") : []);

/** What differs, as a diff has it: everything between the common beginning and the common end, and some of these. */
function compare(before, after) {
  const least = Math.min(before.length, after.length);
  let head = 0;
  while (head < least && before[head] === after[head]) head += 1;
  let tail = 0;
  while (tail < least - head && before.at(-1 - tail) === after.at(-1 - tail)) tail += 1;
  const signed = (sign, lines) => lines.map((content) => sign + content);
  return [
    ...signed(" ", before.slice(Math.max(0, head - CONTEXT), head)),
    ...signed("-", before.slice(head, before.length - tail)),
    ...signed("+", after.slice(head, after.length - tail)),
    ...signed(" ", before.slice(before.length - tail).slice(0, CONTEXT)),
  ];
}
