// Shows /openapi.json: operations by tag, then the components that they refer to. Text only, never markup.

const main = document.getElementById("main");

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, options);
  made.append(...children.filter((child) => child != null));
  return made;
}

const code = (text) => element("code", {}, text);

// A schema in a few words; components are linked.
function words(schema) {
  if (schema === undefined || schema === true) return "anything";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return element("a", { href: `#${name}` }, name);
  }
  for (const key of ["anyOf", "oneOf", "allOf"]) {
    if (schema[key]) return joined(schema[key], key === "allOf" ? " and " : " or ");
  }
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return element("span", {}, "list of ", words(schema.items));
  return [schema.type ?? "anything"].flat().join(" or ");
}

function joined(schemas, separator) {
  const parts = schemas.flatMap((schema, index) => (index ? [separator, words(schema)] : [words(schema)]));
  return element("span", {}, ...parts);
}

function row(...cells) {
  return element("tr", {}, ...cells.map((cell) => element("td", {}, cell ?? "")));
}

function properties(schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, of]) =>
    row(code(name), required.has(name) ? "required" : "", words(of), of.description),
  );
  return element("table", {}, ...rows);
}

function section(title, ...children) {
  return element("section", {}, element("h3", {}, title), ...children);
}

function operation(path, method, of) {
  const parameters = (of.parameters ?? []).map((it) =>
    row(code(it.name), `${it.in}${it.required ? ", required" : ""}`, words(it.schema), it.description),
  );
  const body = Object.values(of.requestBody?.content ?? {})[0];
  const responses = Object.entries(of.responses ?? {}).map(([status, it]) => {
    const [type, content] = Object.entries(it.content ?? {})[0] ?? [];
    return row(code(status), it.description, content && !type.includes("problem") ? words(content.schema) : "", type);
  });
  return element(
    "details",
    {},
    element(
      "summary",
      {},
      element("span", { className: "method" }, method.toUpperCase()),
      element("span", { className: "path" }, path),
      element("span", { className: "note" }, of.summary ?? ""),
    ),
    element("p", {}, of.description ?? ""),
    parameters.length ? section("Parameters", element("table", {}, ...parameters)) : null,
    body ? section("Body", words(body.schema)) : null,
    section("Answers", element("table", {}, ...responses)),
  );
}

function component(name, of) {
  const shown = of.properties ? properties(of) : element("p", {}, words(of));
  const source = element("pre", {}, JSON.stringify(of, null, 2));
  return element(
    "details",
    { id: name },
    element("summary", {}, code(name)),
    element("p", {}, of.description ?? ""),
    shown,
    element("details", {}, element("summary", {}, "JSON Schema"), source),
  );
}

function show(api) {
  const groups = new Map();
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const [method, of] of Object.entries(operations)) {
      const tag = of.tags?.[0] ?? "other";
      groups.set(tag, [...(groups.get(tag) ?? []), operation(path, method, of)]);
    }
  }
  const components = Object.entries(api.components?.schemas ?? {}).map(([name, of]) => component(name, of));
  main.replaceChildren(
    element("p", {}, `Version ${api.info.version}. `, element("a", { href: "/openapi.json" }, "openapi.json")),
    ...[...groups].flatMap(([tag, operations]) => [element("h2", {}, tag), ...operations]),
    element("h2", {}, "Schemas"),
    ...components,
  );
  openTarget();
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

addEventListener("hashchange", openTarget);
try {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`/openapi.json answers ${answer.status}`);
  show(await answer.json());
} catch (error) {
  main.replaceChildren(element("p", { role: "alert" }, String(error)));
}
