/** A question of the agent to a person, with the buttons that answer it. */

import { request, url } from "./api.js";
import { badge, button, clock, node, setBadge } from "./dom.js";
import { details, json, pre } from "./items.js";
import { exact, line, TextView } from "./text.js";

let forms = 0;

/** A permission request: shown letter by letter, for it is the ground of a decision. */
export class Permission {
  element = null;
  /** The data of the event that ended it, null as long as it waits. */
  resolution = null;
  #buttons = [];
  #hasAnswered = false;

  constructor(data, at) {
    Object.assign(this, { data, at });
  }

  get isPending() {
    return this.resolution === null;
  }

  render() {
    this.element ??= this.#build();
    this.element.classList.toggle("pending", this.isPending);
    if (!this.isPending) {
      const { outcome, option_id: option, by } = this.resolution;
      const label = this.data.options.find(({ option_id: id }) => id === option)?.label;
      setBadge(this.status, outcome, outcome);
      this.by.textContent = line(`${label ? `“${label}”, ` : ""}by ${by.replaceAll("_", " ")}`);
      this.form.hidden = true;
      // The keyboard's user pressed a button that is gone now.
      if (this.#hasAnswered) this.element.focus({ preventScroll: true });
      this.#hasAnswered = false;
    }
    return this.element;
  }

  #build() {
    const { kind, title, description, detail, input, questions = [], expires_at: expires } = this.data;
    this.status = badge("waits for you", "requires_action");
    this.by = node("span", "muted");
    const what = { tool: "Permission", plan: "Plan", question: "Question", mode: "Mode" }[kind] ?? "Permission";
    const head = node("p", "item-head", node("span", "who", what), this.status, this.by, clock(this.at));
    const element = node("li", "item permission", head);
    element.tabIndex = -1;
    // A form with one question usually has it as its title as well.
    if (questions.length === 1 && questions[0].question === title) element.classList.add("titled-by-question");
    const name = new TextView("p", "text title", exact);
    name.set(title);
    element.append(name.element);
    if (description && description !== title) {
      const words = new TextView("p", "text", exact);
      words.set(description);
      element.append(words.element);
    }
    element.append(...details(detail, { title, read: exact }));
    if (json(input) !== "") {
      element.append(node("details", "", node("summary", "", "Raw input"), pre("Input", json(input), "", exact)));
    }
    this.failure = node("p", "failure");
    this.failure.setAttribute("role", "alert");
    this.form = kind === "question" ? this.#fields(questions) : this.#options();
    if (expires) this.form.lastChild.append(node("span", "expires muted", "Expires at "), clock(expires));
    element.append(this.form, this.failure);
    return element;
  }

  /** A button for each option of the backend; plain ones where it offers none. */
  #options() {
    const offered = this.data.options.map(({ option_id: option, label, kind }) => {
      const outcome = kind.startsWith("allow") ? "allow" : "deny";
      return [line(label, 80), outcome, option];
    });
    if (offered.length === 0) offered.push(["Allow", "allow", null]);
    if (!offered.some(([, outcome]) => outcome === "deny")) offered.push(["Deny", "deny", null]);
    const row = node("div", "row answers");
    offered.forEach(([label, outcome, option], at) => {
      const look = outcome === "deny" ? "danger" : at === 0 ? "primary" : "";
      row.append(this.#button(label, look, () => this.#respond({ outcome, option_id: option })));
    });
    return node("div", "", row);
  }

  /** A field for each question; an answer's key is the question's header. */
  #fields(questions) {
    const form = node("form", "questions");
    const fields = questions.map((question) => field(question));
    form.append(...fields.map(({ element }) => element));
    const send = node("button", "primary", "Answer");
    send.type = "submit";
    const row = node("div", "row answers", send, this.#button("Deny", "danger", () => this.#respond({ outcome: "deny" })));
    this.#buttons.push(send);
    form.append(row);
    form.addEventListener("submit", (submit) => {
      submit.preventDefault();
      const answers = {};
      for (const { key, value } of fields) {
        const given = value();
        if (given !== null) answers[key] = given;
      }
      this.#respond({ outcome: "allow", answers });
    });
    return form;
  }

  #button(label, look, action) {
    const made = button(label, look, action);
    this.#buttons.push(made);
    return made;
  }

  async #respond(answer) {
    this.#enable(false);
    this.#hasAnswered = true;
    this.failure.textContent = "";
    try {
      await request("POST", url("permissions", this.data.permission_id, "respond"), answer);
    } catch (problem) {
      this.#hasAnswered = false;
      this.failure.textContent = line(problem.message, 1000);
      this.#enable(true);
    }
  }

  #enable(enabled) {
    for (const each of this.#buttons) each.disabled = !enabled;
  }
}

/** The fields of one question, and how to read them: null is no answer. */
function field({ question, header, options, multiple }) {
  const key = header ?? question;
  const choices = options ?? [];
  forms += 1;
  if (choices.length === 0) {
    const input = node("input");
    input.type = "text";
    input.autocomplete = "off";
    input.id = `answer-${forms}`;
    const label = node("label", "", exact(question));
    label.htmlFor = input.id;
    return { key, element: node("div", "question", label, input), value: () => input.value || null };
  }
  const inputs = choices.map((choice) => {
    const input = node("input");
    input.type = multiple ? "checkbox" : "radio";
    input.name = `answer-${forms}`;
    return [input, choice];
  });
  const labels = inputs.map(([input, choice]) => node("label", "choice", input, exact(choice)));
  return {
    key,
    element: node("fieldset", "question", node("legend", "", exact(question)), ...labels),
    value: () => {
      const chosen = inputs.filter(([input]) => input.checked).map(([, choice]) => choice);
      return multiple ? chosen : (chosen[0] ?? null);
    },
  };
}
