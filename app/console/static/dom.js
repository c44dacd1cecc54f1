/** Building the page: elements and text nodes, never markup. */

/** The element of the page with this id. */
export const $ = (id) => document.getElementById(id);

/** A new element; strings among the children become text. */
export function node(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** A button that does `action` when pressed. */
export function button(label, className, action) {
  const element = node("button", className, label);
  element.type = "button";
  element.addEventListener("click", action);
  return element;
}

/** Set an element's text only if it differs, so that nothing is announced or laid out twice. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A word on a coloured ground; `state` picks the colour. */
export function badge(text, state = text) {
  const element = node("span", "badge", text);
  element.dataset.state = state;
  return element;
}

/** Change what a badge says. */
export function setBadge(element, text, state = text) {
  write(element, text);
  element.dataset.state = state;
}

/** A point in time, as a clock on this machine's wall shows it. */
export function clock(at) {
  const element = node("time", "muted");
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return element;
  element.dateTime = date.toISOString();
  element.title = date.toLocaleString();
  element.textContent = date.toLocaleTimeString();
  return element;
}
