// API documentation rendered from the OpenAPI document: parameters, responses, a form that sends the request, code.

import { tryOut } from "./docs-try.js";
import { $, element, prose } from "./dom.js";

const nameOf = (reference) => reference.split("/").pop();

/** A type in words; schemas are links. */
function typeOf(schema = {}) {
  if (schema.$ref) return element("a", { href: `#schema-${nameOf(schema.$ref)}`, textContent: nameOf(schema.$ref) });
  const options = schema.anyOf || schema.oneOf;
  if (options) return element("span", {}, ...options.filter((option) => option.type !== "null").flatMap((option, index) => (index ? [" or ", typeOf(option)] : [typeOf(option)])));
  if (schema.enum) return element("span", { textContent: schema.enum.join(" | ") });
  if (schema.type === "array") return element("span", {}, "list of ", typeOf(schema.items));
  return element("span", { textContent: schema.format || schema.type || "any" });
}

function boundsOf(schema = {}) {
  const outer = (schema.anyOf || []).find((option) => option.type !== "null") || schema;
  const inner = outer.items || outer;
  const names = { exclusiveMinimum: ">", minimum: "≥", exclusiveMaximum: "<", maximum: "≤", maxLength: "at most", maxItems: "at most", pattern: "matches" };
  const bounds = Object.entries(names).filter(([name]) => name in outer || name in inner).map(([name, word]) => `${word} ${outer[name] ?? inner[name]}`);
  if (schema.default !== undefined && schema.default !== null) bounds.push(`default ${JSON.stringify(schema.default)}`);
  return bounds.join(", ");
}

function fields(rows) {
  const head = element("tr", {}, ...["name", "type", "bounds", "description", "example"].map((text) => element("th", { textContent: text })));
  return element("table", {}, head, ...rows.map(({ name, required, schema = {}, description }) => {
    const example = schema.examples?.[0] ?? schema.example;
    return element("tr", {}, element("td", {}, element("code", { textContent: name }), required ? " *" : ""), element("td", {}, typeOf(schema)),
      element("td", { textContent: boundsOf(schema) }), element("td", {}, prose(description || schema.description)),
      element("td", {}, example === undefined ? "" : element("code", { textContent: typeof example === "string" ? example : JSON.stringify(example) })));
  }));
}

const properties = (schema) => Object.entries(schema.properties || {}).map(([name, property]) => ({ name, schema: property, required: schema.required?.includes(name) }));

function operation(method, path, spec) {
  const body = Object.entries(spec.requestBody?.content || {})[0];
  const statuses = Object.entries(spec.responses).sort().map(([status, response]) => {
    const content = Object.entries(response.content || {})[0];
    const remedies = Object.values(content?.[1].examples || {}).map((example) => example.summary).join(" ");
    return element("tr", {}, element("td", {}, element("code", { textContent: status })), element("td", {}, prose(response.description), remedies ? element("small", {}, prose(remedies)) : null),
      element("td", { textContent: content ? content[0] : "" }), element("td", {}, content?.[1].schema ? typeOf(content[1].schema) : ""));
  });
  return element("details", { className: "card operation", id: spec.operationId },
    element("summary", {}, element("span", { className: "method", textContent: method }), element("span", { className: "path", textContent: path }), element("p", { className: "muted" }, prose(spec.description))),
    spec.parameters?.length ? element("h4", { textContent: "Parameters" }) : null,
    spec.parameters?.length ? fields(spec.parameters.map((parameter) => ({ ...parameter, name: parameter.in === "header" ? `${parameter.name} (header)` : parameter.name }))) : null,
    body ? element("h4", { textContent: `Body: ${body[0]}` }) : null,
    body ? fields(properties(body[1].schema)) : null,
    element("h4", { textContent: "Responses" }), element("table", {}, ...statuses),
    element("h4", { textContent: "Try it" }), tryOut(method, path, spec, openapi.components.schemas));
}

const openapi = await (await fetch("/openapi.json")).json();
$("title").textContent = `${openapi.info.title} ${openapi.info.version}`;
$("about").append(...openapi.info.description.split("\n\n").map((text) => element("p", {}, prose(text.replaceAll("*", "")))));
$("operations").replaceChildren(...Object.entries(openapi.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, spec]) => operation(method, path, spec))));
$("schemas").append(...Object.entries(openapi.components.schemas).map(([name, schema]) =>
  element("details", { className: "card", id: `schema-${name}` }, element("summary", { textContent: name }), element("p", {}, prose(schema.description)), schema.enum ? prose(schema.enum.map((value) => `\`${value}\``).join(" ")) : fields(properties(schema)))));

/** Open the section that the URL names. */
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!target) return;
  target.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
openTarget();
$("find").oninput = ({ target }) => {
  for (const section of document.querySelectorAll("details")) section.hidden = !section.textContent.toLowerCase().includes(target.value.toLowerCase());
};
