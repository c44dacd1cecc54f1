/**
 * One session's events by EventSource, each exactly once and in order, over whatever happens to the connection.
 *
 * The browser re-opens a stream that broke by itself, with `Last-Event-ID`. It gives up for good on any status
 * but 200; then a new EventSource with a new ticket goes on after the last event that was *processed*.
 */

import { request, url } from "./api.js";

/** EventSource hands over only events whose names it was told; this is every durable one. */
const TYPES = [
  "session.opened", "session.updated", "session.closed",
  "turn.queued", "turn.started", "turn.requires_action", "turn.reconciling", "turn.resumed", "turn.retrying",
  "turn.completed", "turn.failed", "turn.timed_out", "turn.cancelled", "turn.indeterminate",
  "message.delta", "message.completed", "reasoning.delta", "reasoning.completed",
  "tool_call.started", "tool_call.updated", "tool_call.completed",
  "plan.updated", "usage.updated", "config.updated", "compaction.updated",
  "permission.requested", "permission.resolved", "permission.expired",
  "file.collision", "file.collision_resolved", "terminal.opened", "terminal.closed",
  "task.started", "task.step_started", "task.completed", "task.failed", "task.cancelled", "task.timed_out",
  "backend.disconnected", "backend.reconnected", "backend.gap", "notice",
];

/** After these the stream is over; any other reason is a passing one. */
const ENDS = {
  session_closed: ["closed", "The session is closed."],
  turn_ended: ["closed", "The turn has ended."],
  superseded: ["stopped", "A newer stream took over."],
  auth_expired: ["stopped", "The key is no longer valid."],
};

/** Refusals of a ticket that no waiting cures. */
const REFUSALS = {
  401: ["stopped", "The key is not valid."],
  403: ["stopped", "The key may not read."],
  404: ["stopped", "There is no session of this id (any more)."],
};

/** The longest pause before another attempt, in ms; the shortest is a sixteenth of it. */
const MAX_PAUSE = 16_000;

export class SessionStream {
  /** The seq of the last event that was processed; null before anything is known of the log. */
  after;
  /** `connecting`, `replaying`, `live`, `stalled`, `reconnecting`, `closed` (an end), `stopped` (needs a person). */
  state = "connecting";

  #source = null;
  #timer = null;
  #attempts = 0;
  #run = 0;
  #sessionId;
  #on;

  /**
   * `after` null reads from the log's start. `on` has `event(event)`, `reset(reset)` and `state(state, words)`;
   * none is called any more after `stop`.
   */
  constructor(sessionId, after, on) {
    this.#sessionId = sessionId;
    this.after = after;
    this.#on = on;
    this.#connect();
  }

  /** End it; a stopped stream stays stopped. */
  stop() {
    this.#run += 1;
    this.#drop();
  }

  /** Begin anew at once, with a new ticket. */
  restart() {
    this.stop();
    this.#attempts = 0;
    this.#enter("connecting");
    this.#connect();
  }

  #drop() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #enter(state, words = "") {
    this.state = state;
    this.#on.state(state, words);
  }

  #end([state, words]) {
    this.stop();
    this.#enter(state, words);
  }

  #later(words) {
    this.#drop();
    this.#enter("reconnecting", words);
    const pause = Math.min(MAX_PAUSE, (MAX_PAUSE / 16) * 2 ** this.#attempts);
    this.#attempts += 1;
    this.#timer = setTimeout(() => this.#connect(), pause * (0.5 + Math.random() / 2));
  }

  async #connect() {
    const run = ++this.#run;
    let ticket;
    try {
      // A closed session whose log was read to its end answers 204, which the page cannot tell from a refusal.
      const session = await request("GET", url("sessions", this.#sessionId));
      if (run !== this.#run) return;
      if (session.status === "closed" && session.last_seq <= this.after) return this.#end(ENDS.session_closed);
      ({ ticket } = await request("POST", url("stream-tickets"), { session_id: this.#sessionId }));
    } catch (problem) {
      if (run !== this.#run) return;
      if (problem.status in REFUSALS) return this.#end(REFUSALS[problem.status]);
      return this.#later(problem.message);
    }
    if (run === this.#run) this.#open(ticket);
  }

  #open(ticket) {
    const query = new URLSearchParams({ ticket });
    if (this.after !== null) query.set("after", this.after);
    const source = new EventSource(`${url("sessions", this.#sessionId)}/events/stream?${query}`);
    this.#source = source;
    const listen = (name, act) =>
      source.addEventListener(name, (message) => {
        if (source === this.#source) act(JSON.parse(message.data));
      });

    for (const type of TYPES) listen(type, (event) => this.#take(event));
    listen("stream.ready", ({ after }) => {
      this.after ??= after;
      if (this.state !== "connecting") this.#enter("replaying");
    });
    listen("stream.synced", () => {
      this.#attempts = 0;
      this.#enter("live");
    });
    listen("stream.reset", (reset) => {
      this.after = reset.resume_from;
      this.#on.reset(reset);
    });
    listen("stream.stalled", () => this.#enter("stalled", "The server’s database is away; nothing is lost."));
    listen("stream.resumed", () => this.#enter("live"));
    listen("stream.closing", ({ reason }) => {
      if (reason in ENDS) this.#end(ENDS[reason]);
      else this.#later(`The server ended the stream (${reason}).`);
    });
    source.addEventListener("error", () => {
      if (source !== this.#source) return;
      if (source.readyState === EventSource.CLOSED) this.#later("The server refused the stream.");
      else this.#enter("reconnecting", "The connection broke.");
    });
  }

  #take(event) {
    if (this.after !== null && event.seq <= this.after) return;
    this.after = event.seq; // first: an event that the page cannot show is not asked for again
    this.#on.event(event);
  }
}
