/** The page: who is asking, the list of sessions, the open session. */

import { loadKey, Problem, randomId, request, setKey, url } from "./api.js";
import { $, button, node, setBadge, write } from "./dom.js";
import { Log } from "./log.js";
import { SessionStream } from "./stream.js";
import { line } from "./text.js";

/** Between two looks at the list of sessions, while the page is visible; in ms. */
const REFRESH_MS = 4000;

/** An open stream that is so many ms behind the log, as the list shows it, is dead without knowing it. */
const DEAD_MS = 20_000;

/** Sessions in the list at first, and at most. */
const PAGE = 50;
const MAX_PAGE = 200;

const EXAMPLE = `think the tests fail because of a typo
plan find it; mend it; run the tests
read src/main.py
edit src/main.py
ask Run the tests?
run make test
say All green.
stream 30 40
tokens 1200 340`;

const CONNECTION = {
  connecting: "Connecting\u2026",
  replaying: "Catching up\u2026",
  live: "Live",
  stalled: "Stalled",
  reconnecting: "Reconnecting\u2026",
  closed: "Closed",
  stopped: "Stopped",
};

/** The open session as the API last showed it, its stream, and since when the stream is behind. */
let session = null;
let stream = null;
let behindSince = null;

let limit = PAGE;
let refreshTimer = null;
let isRefreshing = false;
let isStale = false;

/** Backends by name. */
let backends = new Map();

/** What was sent and not answered yet: sending the same again then uses the same id. */
let unanswered = null;

const log = new Log(
  { list: $("log"), scroll: $("scroll"), dropped: $("dropped") },
  {
    turns: () => showActions(),
    usage: (usage) => showFacts({ usage }),
    settings: (changed) => showFacts(changed),
    session: () => refreshSoon(),
    announce: (words) => write($("announcer"), words),
    unqueue: (turn) => attempt(null, () => request("DELETE", url("turns", turn))),
  },
);

// Who is asking

/** Take `#key=` and `#session=` out of the address bar; the key is never left in it. */
function readFragment() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = fragment.get("key");
  if (given !== null) {
    fragment.delete("key");
    const rest = fragment.toString();
    history.replaceState(null, "", location.pathname + location.search + (rest && `#${rest}`));
    setKey(given);
  }
  return { hasKey: given !== null, sessionId: fragment.get("session") };
}

async function start() {
  loadKey();
  const { sessionId } = readFragment();
  if (await connect()) {
    if (sessionId !== null) await openById(sessionId);
    else view("new");
  }
}

/** See whether the server takes our key, or none; on success everything else is filled. */
async function connect() {
  try {
    showSessions(await request("GET", `${url("sessions")}?limit=${limit}`));
  } catch (problem) {
    if (problem.status === 401) {
      askForKey(loadKey() === null ? "" : "The server does not take this key.");
    } else {
      fail(problem);
      setTimeout(start, REFRESH_MS);
    }
    return false;
  }
  fail(null);
  $("forget-key").hidden = loadKey() === null;
  await loadBackends();
  schedule();
  return true;
}

function askForKey(words) {
  closeStream();
  session = null;
  setKey(null);
  $("forget-key").hidden = true;
  fail(words ? new Problem(401, "", words) : null);
  view("key");
  $("key").focus();
}

$("key-form").addEventListener("submit", async (submit) => {
  submit.preventDefault();
  setKey($("key").value.trim());
  $("key").value = "";
  if (await connect()) view("new");
});

$("forget-key").addEventListener("click", () => {
  setKey(null);
  location.replace(location.pathname);
});

addEventListener("hashchange", async () => {
  const { hasKey, sessionId } = readFragment();
  if (hasKey && !(await connect())) return;
  if (sessionId !== null && sessionId !== session?.session_id) await openById(sessionId);
});

// Views and failures

/** Show one of `wait`, `key`, `new`, `session`, and on narrow screens `list`. */
function view(name) {
  document.body.dataset.view = name;
  if (name !== "session") write(document.head.querySelector("title"), "Alameda");
}

/** Show what went wrong; null takes it away. */
function fail(problem) {
  const words = problem === null ? "" : problem instanceof Problem ? problem.message : String(problem);
  $("alert").hidden = words === "";
  write($("alert"), line(words, 1000));
}

/** Do `work`, with `control` out of order meanwhile, and show its failure; returns whether it went well. */
async function attempt(control, work) {
  if (control !== null) control.disabled = true;
  try {
    await work();
    fail(null);
    return true;
  } catch (problem) {
    if (problem.status === 401) askForKey("The server does not take this key any more.");
    else fail(problem);
    return false;
  } finally {
    if (control !== null) control.disabled = false;
  }
}

// The list of sessions

function schedule() {
  clearTimeout(refreshTimer);
  refreshTimer = setTimeout(refresh, REFRESH_MS);
}

function refreshSoon() {
  isStale = isRefreshing; // what is on its way may have been answered already
  clearTimeout(refreshTimer);
  refreshTimer = setTimeout(refresh, 250);
}

async function refresh() {
  if (document.visibilityState !== "visible" || document.body.dataset.view === "key" || isRefreshing) return;
  isRefreshing = true;
  try {
    const page = await request("GET", `${url("sessions")}?limit=${limit}`);
    showSessions(page);
    if (session !== null) {
      const id = session.session_id;
      const found = page.items.find((item) => item.session_id === id) ?? (await request("GET", url("sessions", id)));
      if (session?.session_id === id) showSession(found);
      watch();
    }
  } catch (problem) {
    if (problem.status === 401) askForKey("The server does not take this key any more.");
    // Anything else passes, and the state of the stream says what there is to say.
  } finally {
    isRefreshing = false;
    if (isStale) refreshSoon();
    else schedule();
  }
}

/** Heartbeats are comments, which EventSource does not show: a silent death is seen by falling behind. */
function watch() {
  const isBehind = stream?.state === "live" && session !== null && stream.after < session.last_seq;
  behindSince = isBehind ? (behindSince ?? { at: Date.now(), after: stream.after }) : null;
  if (behindSince !== null && behindSince.after !== stream.after) behindSince = null;
  if (behindSince !== null && Date.now() - behindSince.at > DEAD_MS) {
    behindSince = null;
    stream.restart();
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") refresh();
});

const rows = new Map();

function showSessions({ items, next_cursor: next }) {
  const list = $("sessions");
  const ids = new Set(items.map((item) => item.session_id));
  for (const [id, row] of rows) {
    if (ids.has(id)) continue;
    row.element.remove();
    rows.delete(id);
  }
  items.forEach((item, at) => {
    const row = rows.get(item.session_id) ?? makeRow(item.session_id);
    const state = stateOf(item);
    write(row.title, line(item.title, 80) || line(`${item.agent} ${item.session_id}`, 80));
    write(row.facts, line(`${item.agent} · ${item.cwd ?? ""}`, 120));
    setBadge(row.badge, item.pending_permissions > 0 ? "waits for you" : state.replaceAll("_", " "), state);
    row.element.dataset.status = item.status;
    if (list.children[at] !== row.element) list.insertBefore(row.element, list.children[at] ?? null);
  });
  markRow();
  $("no-sessions").hidden = items.length > 0;
  $("more-sessions").hidden = next === null || limit === MAX_PAGE;
}

const stateOf = ({ status, activity }) => (status === "active" ? activity : status);

function makeRow(id) {
  const title = node("span", "row-title");
  const facts = node("span", "row-facts muted");
  const state = node("span", "badge");
  const open = button("", "session-row", () => openById(id));
  open.append(title, state, facts);
  open.title = id;
  const row = { element: node("li", "", open), open, title, facts, badge: state };
  rows.set(id, row);
  return row;
}

function markRow() {
  for (const [id, row] of rows) {
    if (id === session?.session_id) row.open.setAttribute("aria-current", "true");
    else row.open.removeAttribute("aria-current");
  }
}

$("refresh").addEventListener("click", () => attempt($("refresh"), refresh));
$("more-sessions").addEventListener("click", () => {
  limit = MAX_PAGE;
  refreshSoon();
});
$("back").addEventListener("click", () => view("list"));

// A new session

async function loadBackends() {
  try {
    const { items } = await request("GET", url("backends"));
    backends = new Map(items.map((backend) => [backend.name, backend]));
  } catch (problem) {
    return fail(problem);
  }
  const chosen = $("new-backend").value || "demo";
  $("new-backend").replaceChildren(
    ...[...backends.values()].map(({ name, status }) => option(name, status === "up" ? name : `${name} (${status})`)),
  );
  if (backends.has(chosen)) $("new-backend").value = chosen;
  await showAgents();
}

function option(value, label) {
  const element = node("option", "", line(label, 80));
  element.value = value;
  return element;
}

/** An agent is one of the backend's providers; a backend that cannot tell has one of its own name. */
async function showAgents() {
  const name = $("new-backend").value;
  if (name === "") return;
  const detail = backends.get(name)?.detail;
  $("backend-note").hidden = !detail;
  write($("backend-note"), line(detail, 500));
  $("demo-hint").hidden = name !== "demo";
  let providers = [];
  try {
    providers = (await request("GET", url("backends", name, "providers"))).items;
  } catch {
    // A backend that is down has no list; its default agent can be tried all the same.
  }
  if ($("new-backend").value !== name) return;
  const known = providers.filter(({ available }) => available !== false).map(({ id, label }) => option(id, label || id));
  $("new-agent").replaceChildren(...(known.length > 0 ? known : [option(name, name)]));
}

$("new-backend").addEventListener("change", showAgents);
$("show-new").addEventListener("click", async () => {
  closeStream();
  session = null;
  markRow();
  remember(null);
  view("new");
  $("new-prompt").focus();
  await loadBackends();
});
$("use-example").addEventListener("click", () => {
  $("new-prompt").value = EXAMPLE;
  $("new-prompt").focus();
});

$("new-form").addEventListener("submit", async (submit) => {
  submit.preventDefault();
  const prompt = $("new-prompt").value;
  const wanted = { agent: $("new-agent").value, backend: $("new-backend").value };
  const cwd = $("new-cwd").value.trim();
  if (cwd !== "") wanted.cwd = cwd;
  const title = line(prompt.trim().split("\n")[0], 80);
  if (title !== "") wanted.title = title;
  // The id is ours, so that an answer that got lost on its way does not leave a second agent behind.
  const sent = claim(JSON.stringify(wanted), "new");
  let made = null;
  write($("new-send"), "Starting\u2026");
  await attempt($("new-send"), async () => {
    made = await answered(sent, () => request("PUT", url("sessions", sent.id), wanted));
  });
  write($("new-send"), "Start");
  if (made === null) return;
  $("new-prompt").value = "";
  open(made);
  if (!(await sendPrompt(prompt))) $("prompt").value = prompt;
});

// The open session

async function openById(id) {
  await attempt(null, async () => open(await request("GET", url("sessions", id))));
  if (session?.session_id !== id && document.body.dataset.view === "wait") view("new");
}

function open(found) {
  closeStream();
  log.clear();
  log.isReplaying = true;
  session = null;
  showFacts({ usage: null });
  showSession(found);
  markRow();
  remember(found.session_id);
  view("session");
  $("scroll").scrollTop = 0;
  if (found.status === "active") $("prompt").focus();
  stream = new SessionStream(found.session_id, null, {
    event: (event) => log.take(event),
    reset: ({ reason }) => {
      log.clear();
      log.say(`The server’s log does not reach back to what was shown here (${reason}); it goes on from here.`);
    },
    state: showConnection,
  });
}

function closeStream() {
  stream?.stop();
  stream = null;
  behindSince = null;
  $("connection").hidden = true;
  $("reconnect").hidden = true;
}

/** Keep the open session in the address, so that a reload finds it again. */
function remember(id) {
  const fragment = id === null ? "" : `#session=${encodeURIComponent(id)}`;
  history.replaceState(null, "", location.pathname + location.search + fragment);
}

function showConnection(state, words) {
  log.isReplaying = state !== "live";
  const element = $("connection");
  element.hidden = false;
  element.dataset.state = state;
  element.title = words;
  write(element, state === "stopped" || state === "closed" ? words : CONNECTION[state]);
  $("reconnect").hidden = state !== "stopped" && state !== "reconnecting";
  if (state === "closed" || state === "live") refreshSoon();
}

$("reconnect").addEventListener("click", () => stream?.restart());

let facts = {};

/** Take in what is new about the session and show it in its head. */
function showFacts(changed) {
  facts = { ...facts, ...changed };
  const { agent, backend, cwd, model, mode, thinking, usage } = facts;
  const shown = [agent === backend ? agent : [agent, backend].filter(Boolean).join(" on "), cwd, model];
  if (mode) shown.push(`mode ${mode}`);
  if (thinking) shown.push(`thinking ${thinking}`);
  if (usage) {
    const { input_tokens: read, output_tokens: made, cost_usd: cost } = usage;
    const { context_window_used: used, context_window_max: most } = usage;
    if (read || made) shown.push(`${count(read)} tokens in, ${count(made)} out`);
    if (used && most) shown.push(`context ${Math.round((100 * used) / most)} %`);
    if (cost) shown.push(`$${cost.toFixed(cost < 0.1 ? 4 : 2)}`);
  }
  write($("session-facts"), shown.filter(Boolean).map((fact) => line(fact)).join(" · "));
}

const count = (number) => (number ?? 0).toLocaleString("en");

function showSession(found) {
  session = found;
  const { agent, backend, cwd, model, mode, thinking } = found;
  showFacts({ agent, backend, cwd, model, mode, thinking });
  const title = line(found.title, 120) || line(`${agent} ${found.session_id}`, 120);
  write($("session-title"), title);
  $("session-title").title = found.session_id;
  const state = stateOf(found);
  setBadge($("session-activity"), state.replaceAll("_", " "), state);
  write(document.head.querySelector("title"), `${found.pending_permissions > 0 ? "(!) " : ""}${title} · Alameda`);
  showActions();
}

/** The turn that Cancel means: the one that runs, else the first in the queue. */
function openTurn() {
  for (const [turn, status] of log.turns) if (status !== "queued") return turn;
  return session?.current_turn_id ?? log.turns.keys().next().value ?? null;
}

function showActions() {
  if (session === null) return;
  const isActive = session.status === "active";
  $("cancel").hidden = log.turns.size === 0;
  $("close").hidden = !isActive;
  $("reopen").hidden = session.status !== "closed";
  $("prompt-form").hidden = !isActive;
}

$("cancel").addEventListener("click", () => {
  const turn = openTurn();
  if (turn !== null) attempt($("cancel"), () => request("POST", url("turns", turn, "cancel")));
});

$("close").addEventListener("click", () =>
  attempt($("close"), async () => {
    const id = session.session_id;
    const closed = await request("POST", url("sessions", id, "close"), { mode: "cancel" });
    refreshSoon();
    if (session?.session_id === id && closed?.session_id === id) showSession(closed);
  }),
);

$("reopen").addEventListener("click", () =>
  attempt($("reopen"), async () => {
    const opened = await request("PUT", url("sessions", session.session_id), { agent: session.agent });
    if (session?.session_id !== opened.session_id) return;
    showSession(opened);
    stream.restart();
  }),
);

// Prompts

/** The id for what is about to be sent: that of before, if it is the same again and no answer came. */
function claim(content, where) {
  if (unanswered?.content !== content || unanswered.where !== where) {
    unanswered = { content, where, id: `console-${randomId()}` };
  }
  return unanswered;
}

/** Do `work`; once the server has answered, be it with a refusal, the same content would be something new. */
async function answered(sent, work) {
  try {
    const answer = await work();
    if (unanswered === sent) unanswered = null;
    return answer;
  } catch (problem) {
    if (problem.status > 0 && problem.status < 500 && unanswered === sent) unanswered = null;
    throw problem;
  }
}

async function sendPrompt(prompt) {
  const id = session.session_id;
  const sent = claim(prompt, id);
  const body = { prompt, multitask_strategy: "enqueue" };
  const post = () => request("POST", url("sessions", id, "turns"), body, { "Idempotency-Key": sent.id });
  const went = await attempt($("send"), () => answered(sent, post));
  if (went) refreshSoon();
  return went;
}

$("prompt-form").addEventListener("submit", async (submit) => {
  submit.preventDefault();
  const prompt = $("prompt").value;
  if (prompt.trim() === "" || $("send").disabled) return;
  $("prompt").value = "";
  $("scroll").scrollTop = $("scroll").scrollHeight;
  const where = session.session_id;
  if (!(await sendPrompt(prompt)) && session?.session_id === where && $("prompt").value === "") {
    $("prompt").value = prompt;
  }
  $("prompt").focus();
});

for (const id of ["prompt", "new-prompt"]) {
  $(id).addEventListener("keydown", (press) => {
    if (press.key === "Enter" && (press.ctrlKey || press.metaKey)) {
      press.preventDefault();
      $(id).form.requestSubmit();
    }
  });
}

await start();
