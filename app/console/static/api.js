/** The HTTP API, as far as the page needs it. */

/** Where this tab keeps the key; it is gone when the tab closes. */
const STORED_KEY = "alameda.key";

/** How long an answer may take; making an agent may take 90 s by contract. */
const TIMEOUT_MS = 100_000;

/** An answer that is no success, in the server's words. `status` is 0 if there was no answer at all. */
export class Problem extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let key = null;

/** The key of this tab, or null. */
export function loadKey() {
  key = sessionStorage.getItem(STORED_KEY);
  return key;
}

/** Use `value` from now on; null forgets the key. */
export function setKey(value) {
  key = value;
  if (value === null) sessionStorage.removeItem(STORED_KEY);
  else sessionStorage.setItem(STORED_KEY, value);
}

/** A random id. `crypto.randomUUID` exists only on https and on localhost. */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** `path` below `/v1/`, each part escaped. Relative to the page, so that a prefix is no matter. */
export function url(...path) {
  return `v1/${path.map((part) => encodeURIComponent(part)).join("/")}`;
}

/**
 * Send a request and return the JSON of its answer, null if it has none.
 *
 * Throws a `Problem` for everything that is no success.
 */
export async function request(method, target, body, headers = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (key !== null) sent.Authorization = `Bearer ${key}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let answer, text;
  try {
    answer = await fetch(target, {
      method,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    text = await answer.text();
  } catch {
    throw new Problem(0, "unreachable", "The server cannot be reached.");
  }
  let json = null;
  try {
    json = text === "" ? null : JSON.parse(text);
  } catch {
    if (answer.ok) throw new Problem(answer.status, "no_json", "The server’s answer is no JSON.");
  }
  if (answer.ok) return json;
  const words = json?.detail ?? json?.title ?? `The server answered ${answer.status}.`;
  throw new Problem(answer.status, json?.code ?? "", typeof words === "string" ? words : JSON.stringify(words));
}
