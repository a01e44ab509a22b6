// The API as its OpenAPI document tells it. Nothing is fetched but that document.

const $ = (id) => document.getElementById(id);

function element(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Text with `code` in it. */
function prose(text) {
  const parts = (text || "").split("`");
  return element("span", {}, ...parts.map((part, index) => (index % 2 ? element("code", { textContent: part }) : part)));
}

const nameOf = (reference) => reference.split("/").pop();

/** A type in words, with a link where it is a schema. */
function typeOf(schema = {}) {
  if (schema.$ref) return element("a", { href: `#schema-${nameOf(schema.$ref)}`, textContent: nameOf(schema.$ref) });
  const options = schema.anyOf || schema.oneOf;
  if (options) return element("span", {}, ...options.filter((one) => one.type !== "null").flatMap((one, index) => (index ? [" or ", typeOf(one)] : [typeOf(one)])));
  if (schema.enum) return element("span", { textContent: schema.enum.join(" | ") });
  if (schema.type === "array") return element("span", {}, "list of ", typeOf(schema.items));
  return element("span", { textContent: schema.format || schema.type || "any" });
}

function bounds(schema = {}) {
  const one = (schema.anyOf || []).find((each) => each.type !== "null") || schema;
  const inner = one.items || one;
  const names = { exclusiveMinimum: ">", minimum: "≥", exclusiveMaximum: "<", maximum: "≤", maxLength: "at most", maxItems: "at most", pattern: "matches" };
  const found = Object.entries(names).filter(([name]) => name in one || name in inner).map(([name, word]) => `${word} ${one[name] ?? inner[name]}`);
  if (schema.default !== undefined && schema.default !== null) found.push(`default ${JSON.stringify(schema.default)}`);
  return found.join(", ");
}

function fields(rows) {
  const head = element("tr", {}, ...["name", "type", "bounds", "what it is", "example"].map((text) => element("th", { textContent: text })));
  return element("table", {}, head, ...rows.map(({ name, required, schema = {}, description }) => {
    const example = schema.examples?.[0] ?? schema.example;
    return element("tr", {}, element("td", {}, element("code", { textContent: name }), required ? " *" : ""), element("td", {}, typeOf(schema)),
      element("td", { textContent: bounds(schema) }), element("td", {}, prose(description || schema.description)),
      element("td", {}, example === undefined ? "" : element("code", { textContent: typeof example === "string" ? example : JSON.stringify(example) })));
  }));
}

const properties = (schema) => Object.entries(schema.properties || {}).map(([name, each]) => ({ name, schema: each, required: schema.required?.includes(name) }));

function operation(method, path, told) {
  const body = Object.entries(told.requestBody?.content || {})[0];
  const statuses = Object.entries(told.responses).sort().map(([status, response]) => {
    const content = Object.entries(response.content || {})[0];
    const cures = Object.values(content?.[1].examples || {}).map((example) => example.summary).join(" ");
    return element("tr", {}, element("td", {}, element("code", { textContent: status })), element("td", {}, prose(response.description), cures ? element("small", { textContent: cures }) : null),
      element("td", { textContent: content ? content[0] : "" }), element("td", {}, content?.[1].schema ? typeOf(content[1].schema) : ""));
  });
  return element("details", { className: "card operation", id: told.operationId },
    element("summary", {}, element("span", { className: "method", textContent: method }), element("span", { className: "path", textContent: path }), element("p", { className: "muted" }, prose(told.description))),
    told.parameters?.length ? element("h4", { textContent: "Parameters" }) : null,
    told.parameters?.length ? fields(told.parameters.map((each) => ({ ...each, name: each.in === "header" ? `${each.name} (header)` : each.name }))) : null,
    body ? element("h4", { textContent: `Body: ${body[0]}` }) : null,
    body ? fields(properties(body[1].schema)) : null,
    element("h4", { textContent: "Answers" }), element("table", {}, ...statuses));
}

const openapi = await (await fetch("/openapi.json")).json();
$("title").textContent = `${openapi.info.title} ${openapi.info.version}`;
$("about").append(...openapi.info.description.split("\n\n").map((text) => element("p", {}, prose(text.replaceAll("*", "")))));
$("operations").replaceChildren(...Object.entries(openapi.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, told]) => operation(method, path, told))));
$("schemas").append(...Object.entries(openapi.components.schemas).map(([name, schema]) =>
  element("details", { className: "card", id: `schema-${name}` }, element("summary", { textContent: name }), element("p", {}, prose(schema.description)), schema.enum ? prose(schema.enum.map((one) => `\`${one}\``).join(" ")) : fields(properties(schema)))));

/** Open what the address names. */
function follow() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!target) return;
  target.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", follow);
follow();
$("find").oninput = ({ target }) => {
  for (const each of document.querySelectorAll("details")) each.hidden = !each.textContent.toLowerCase().includes(target.value.toLowerCase());
};
