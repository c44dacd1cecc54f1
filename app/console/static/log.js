/** A session's events as a list of items. Events change the model at once, the page once a frame. */

import { button, node } from "./dom.js";
import { Line, Message, Plan, Prompt, Reasoning, ToolCall } from "./items.js";
import { Permission } from "./permission.js";
import { line } from "./text.js";

/** Items in the page at most; beyond it the oldest go. An item is some ten elements. */
const MAX_ITEMS = 400;

/** So many items too many are dropped together. */
const SLACK = 50;

/** Distance from the end, in pixels, at which a reader is regarded as being there. */
const AT_END = 60;

export class Log {
  /** Open turns by id, in the order of their admission: `queued`, `running`, `requires_action`, … */
  turns = new Map();
  /** Whether what comes is history, of which nothing is announced. */
  isReplaying = true;

  #list;
  #scroll;
  #dropped;
  #on;
  #items = [];
  #byKey = new Map();
  #dirty = new Set();
  #gone = [];
  #frame = null;
  #starts = new Map();
  #hasDropped = false;

  /**
   * `on` has `turns()` (they changed), `usage(usage)`, `settings(changed)`, `session()` (look at it again),
   * `announce(words)`, and `unqueue(turn_id)` (the reader wants it out of the queue).
   */
  constructor({ list, scroll, dropped }, on) {
    this.#list = list;
    this.#scroll = scroll;
    this.#dropped = dropped;
    this.#on = on;
    this.clear();
  }

  /** Forget everything. */
  clear() {
    this.#items = [];
    this.#byKey.clear();
    this.#dirty.clear();
    this.#starts.clear();
    this.#gone = [];
    this.turns.clear();
    this.#list.replaceChildren();
    this.#hasDropped = false;
    this.#dropped.hidden = true;
    this.#on.turns();
  }

  /** Say something that is no event. */
  say(words, tone = "warning") {
    this.#add(new Line(words, { tone }));
  }

  /** Take an event in; each must come once and in order. Types that are not known change nothing. */
  take({ type, turn_id: turn, at, data }) {
    switch (type) {
      case "message.delta":
      case "message.completed":
        return this.#text(data.role === "user" ? Prompt : Message, type, data, at);
      case "reasoning.delta":
      case "reasoning.completed":
        return this.#text(Reasoning, type, data, at);
      case "tool_call.started":
      case "tool_call.updated":
      case "tool_call.completed":
        return this.#change(`tool ${data.tool_call_id}`, () => new ToolCall(), (item) => (item.data = data));
      case "plan.updated":
        return this.#change(`plan ${turn}`, () => new Plan(), (item) => (item.entries = data.entries));
      case "permission.requested":
        this.#announce(`The agent asks: ${line(data.title)}`);
        this.#on.session();
        return this.#add(new Permission(data, at), `permission ${data.permission_id}`);
      case "permission.resolved":
      case "permission.expired":
        this.#on.session();
        return this.#changeKnown(`permission ${data.permission_id}`, (item) => (item.resolution = data));
      case "usage.updated":
        return this.#on.usage(data);
      case "config.updated":
        return this.#on.settings(data);
      case "session.updated":
        return this.#on.settings(data.changed);
    }
    if (type.startsWith("turn.")) return this.#turn(type, turn, at, data);
    const words = WORDS[type]?.(data);
    if (words === undefined) return;
    const [text, tone] = [words].flat();
    this.#add(new Line(text, { tone, at }));
    if (type.startsWith("session.")) this.#on.session();
  }

  #turn(type, turn, at, data) {
    const end = ENDS[type];
    if (end === undefined) {
      this.turns.set(turn, STATUS[type] ?? "running");
    } else {
      this.turns.delete(turn);
    }
    switch (type) {
      case "turn.queued":
        if (data.position > 0) this.#queue(turn, at, data.position);
        break;
      case "turn.started":
        this.#changeKnown(`queued ${turn}`, (item) => (item.isOver = true));
        if (data.attempt > 1) this.#add(new Line(`Attempt ${data.attempt}.`, { at }));
        else this.#add(new Prompt(data.prompt, at));
        if (!this.#starts.has(turn)) this.#starts.set(turn, Date.parse(at));
        break;
      case "turn.retrying":
        this.#add(new Line(`Trying again in ${data.delay_s.toFixed(1)} s: ${data.error.message}`, { tone: "warning", at }));
        break;
      case "turn.reconciling":
        this.#add(new Line(`Finding out what became of the turn (${data.cause}).`, { tone: "warning", at }));
        break;
    }
    if (end !== undefined) {
      const [words, tone] = end(data);
      const began = this.#starts.get(turn);
      this.#starts.delete(turn);
      const took = began === undefined ? "" : ` after ${((Date.parse(at) - began) / 1000).toFixed(1)} s`;
      this.#changeKnown(`queued ${turn}`, (item) => (item.isOver = true));
      this.#add(new Line(words.replace("\u0000", took), { tone, at }));
      this.#announce(words.replace("\u0000", took));
    }
    this.#on.turns();
    this.#on.session();
  }

  #queue(turn, at, position) {
    const action = button("Take out", "quiet small", () => this.#on.unqueue(turn));
    this.#add(new Line(`Queued, at position ${position}.`, { at, action }), `queued ${turn}`);
  }

  #text(Kind, type, data, at) {
    const make = () => (Kind === Prompt ? new Prompt("", at, "Somebody else’s prompt") : new Kind());
    this.#change(`${Kind === Reasoning ? "reasoning" : "message"} ${data.message_id}`, make, (item) => {
      item.done = type.endsWith(".completed");
      item.text = item.done ? data.text : item.text + data.text;
    });
  }

  #announce(words) {
    if (!this.isReplaying) this.#on.announce(words);
  }

  #change(key, make, change) {
    if (!this.#byKey.has(key)) this.#add(make(), key);
    this.#changeKnown(key, change);
  }

  #changeKnown(key, change) {
    const item = this.#byKey.get(key);
    if (item === undefined) return;
    change(item);
    this.#touch(item);
  }

  #add(item, key = null) {
    item.key = key;
    this.#items.push(item);
    if (key !== null) this.#byKey.set(key, item);
    if (this.#items.length > MAX_ITEMS + SLACK) this.#drop();
    this.#touch(item);
  }

  #drop() {
    let surplus = this.#items.length - MAX_ITEMS;
    this.#items = this.#items.filter((item) => {
      if (surplus <= 0 || item.isPending === true) return true;
      surplus -= 1;
      if (this.#byKey.get(item.key) === item) this.#byKey.delete(item.key);
      this.#dirty.delete(item);
      if (item.element !== null) this.#gone.push(item.element);
      return false;
    });
    this.#hasDropped = true;
  }

  #touch(item) {
    this.#dirty.add(item);
    this.#frame ??= requestAnimationFrame(() => this.#render());
  }

  #render() {
    this.#frame = null;
    const { scrollHeight, scrollTop, clientHeight } = this.#scroll;
    const wasAtEnd = scrollHeight - scrollTop - clientHeight < AT_END;
    for (const element of this.#gone) element.remove();
    this.#gone = [];
    const fresh = document.createDocumentFragment();
    for (const item of this.#dirty) {
      const isNew = item.element === null;
      const element = item.render();
      if (isNew) fresh.append(element); // new ones became dirty in their order
    }
    this.#dirty.clear();
    this.#list.append(fresh);
    this.#dropped.hidden = !this.#hasDropped;
    if (wasAtEnd) this.#scroll.scrollTop = this.#scroll.scrollHeight;
  }
}

const STATUS = { "turn.queued": "queued", "turn.requires_action": "requires_action", "turn.reconciling": "reconciling" };

/** A turn's end in words and tone; NUL stands where the time that it took goes. */
const ENDS = {
  "turn.completed": ({ stop_reason: reason, usage, reconciled }) => [
    `Completed\u0000${reason && reason !== "end_turn" ? ` (${reason})` : ""}` +
      `${reconciled ? ", as the backend says: we were away at the end" : ""}${tokens(usage)}.`,
    reason === "refusal" ? "warning" : "good",
  ],
  "turn.failed": ({ error }) => [`Failed\u0000: ${error.message} (${error.code})`, "error"],
  "turn.timed_out": ({ limit }) => [`Timed out\u0000: the ${limit} limit was reached.`, "error"],
  "turn.cancelled": ({ cause, cancel_outcome: outcome }) => [
    `Cancelled\u0000 by ${words(cause)}${outcome === "unconfirmed" ? "; the agent may still be working" : ""}.`,
    "warning",
  ],
  "turn.indeterminate": ({ cause }) => [
    `Indeterminate\u0000: the agent may or may not have done the work (${words(cause)}).`,
    "error",
  ],
};

const words = (name) => String(name).replaceAll("_", " ");

const tokens = (usage) =>
  usage?.input_tokens || usage?.output_tokens
    ? `; ${usage.input_tokens ?? "?"} tokens in, ${usage.output_tokens ?? "?"} out`
    : "";

const task = (what) => ({ task_id: id, step }) => `Task ${id}${step ? `, step “${step}”` : ""} ${what}.`;

/** The rest of the events, each in one line, with its tone where that is not `info`. */
const WORDS = {
  "session.opened": ({ how, cwd }) => `Session ${how}${cwd ? `, in ${cwd}` : ""}.`,
  "session.closed": ({ reason }) => [`Session closed (${words(reason)}).`, "warning"],
  "compaction.updated": ({ status, tokens_before: before }) =>
    `Context compaction: ${status}${before ? `, ${before} tokens before` : ""}.`,
  "file.collision": ({ path, severity }) => [`Another session works on ${path}, too (${severity}).`, "warning"],
  "file.collision_resolved": ({ path }) => `The collision on ${path} is over.`,
  "terminal.opened": ({ name, terminal_id: id }) => `Terminal ${name ?? id} opened.`,
  "terminal.closed": ({ name, terminal_id: id }) => `Terminal ${name ?? id} closed.`,
  "task.started": task("started"),
  "task.step_started": task("started"),
  "task.completed": task("completed"),
  "task.failed": (data) => [task("failed")(data), "error"],
  "task.cancelled": (data) => [task("was cancelled")(data), "warning"],
  "task.timed_out": (data) => [task("timed out")(data), "error"],
  "backend.disconnected": ({ cause }) => [`The link to the backend is down (${words(cause)}).`, "warning"],
  "backend.reconnected": () => "The link to the backend is back.",
  "backend.gap": ({ cause }) => [`Something is missing here: the backend could no longer tell it (${words(cause)}).`, "error"],
  notice: ({ level, code, message }) => [message || words(code), level],
};
