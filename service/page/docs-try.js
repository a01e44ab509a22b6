// A form that sends a request of the API, with code that sends the same one.

import { get, hasKey } from "./api.js";
import { button, copy, element } from "./dom.js";
import { samples } from "./docs-samples.js";
import { bytes } from "./text.js";

const SHOWN = 20000; // characters of a response
const STREAM_MS = 5000; // time to read a response that does not end, as events
const PLACEHOLDER_KEY = "Bearer $UVOS_API_KEY";

/** The form of an operation; `schemas` are those of the OpenAPI document. */
export function tryOut(method, path, spec, schemas) {
  const [bodyType, body] = Object.entries(spec.requestBody?.content ?? {})[0] ?? [];
  const [answer] = Object.keys(spec.responses[200]?.content ?? spec.responses[202]?.content ?? {});
  const inputs = (spec.parameters ?? []).map((parameter) => input(parameter.name, parameter.in, parameter.schema, parameter.required));
  const isForm = bodyType === "multipart/form-data";
  if (isForm) inputs.push(...Object.entries(body.schema.properties).map(([name, schema]) => input(name, "form", schema, body.schema.required?.includes(name))));
  if (body && !isForm) inputs.push(input("body", "body", { examples: [JSON.stringify(exampleOf(body.schema, schemas))] }, true));

  const code = element("pre", { className: "mono", tabIndex: 0 });
  const language = element("select", {}, ...["curl", "Python", "JavaScript"].map((name) => new Option(name)));
  language.setAttribute("aria-label", "Language");
  const output = element("div", { className: "answer" });
  output.setAttribute("role", "status");
  const refresh = () => (code.textContent = samples(describe(method, path, inputs), answer)[language.value]);
  const sendIt = button("Send", () => send(method, path, inputs, output), "primary");
  const form = element("form", { className: "try", oninput: refresh, onsubmit: (event) => (event.preventDefault(), sendIt.click()) },
    element("div", { className: "fields" }, ...inputs.map(({ label }) => label)), sendIt, output,
    element("div", { className: "row" }, element("label", {}, "Code ", language), button("Copy", ({ target }) => copy(code.textContent, target), "quiet")), code);
  refresh();
  return form;
}

function input(name, place, schema = {}, required = false) {
  const example = schema.examples?.[0] ?? schema.items?.examples?.[0] ?? schema.anyOf?.[0]?.examples?.[0] ?? "";
  const shown = typeof example === "object" ? [example].flat().join(", ") : String(example);
  const isFile = schema.format === "binary";
  const choices = schema.enum ?? schema.anyOf?.find((option) => option.enum)?.enum;
  const control = choices && !required ? element("select", {}, new Option("", ""), ...choices.map((value) => new Option(value))) : element("input", isFile ? { type: "file" } : { placeholder: shown, autocomplete: "off", spellcheck: false });
  if (place === "body") control.value = shown;
  return { name, place, control, required, isFile, isList: schema.type === "array", example: shown, label: element("label", {}, `${name}${required ? " *" : ""} `, control) };
}

function exampleOf(schema, schemas) {
  const resolved = schema.$ref ? schemas[schema.$ref.split("/").pop()] : schema;
  if (resolved.examples) return resolved.examples[0];
  return Object.fromEntries(Object.entries(resolved.properties ?? {}).filter(([, field]) => field.examples).map(([name, field]) => [name, field.examples[0]]));
}

const valuesOf = ({ control, isList }) => (isList ? control.value.split(",").map((item) => item.trim()) : [control.value.trim()]).filter(Boolean);

/** The request that the inputs describe, for code: examples where a required value is missing. */
function describe(method, path, inputs) {
  const at = (place) => inputs.filter((item) => item.place === place);
  const filled = (items) => items.filter((item) => !item.isFile).flatMap((item) => valuesOf(item).map((value) => [item.name, value]));
  const url = new URL(at("path").reduce((text, item) => text.replace(`{${item.name}}`, encodeURIComponent(item.control.value.trim() || item.example)), path), location.origin);
  for (const [name, value] of filled(at("query"))) url.searchParams.append(name, value);
  const file = at("form").find((item) => item.isFile);
  const body = at("body")[0]?.control.value;
  const headers = [...filled(at("header")), ...(hasKey() ? [["Authorization", PLACEHOLDER_KEY]] : []), ...(body ? [["Content-Type", "application/json"]] : [])];
  return { method: method.toUpperCase(), url: url.href, headers, fields: filled(at("form")), file: file && (file.control.files[0]?.name ?? "clip.mp4"), body };
}

async function send(method, path, inputs, output) {
  const missing = inputs.find((item) => item.required && !item.control.value.trim());
  if (missing) {
    output.textContent = `Enter ${missing.name} first.`;
    return missing.control.focus();
  }
  const request = describe(method, path, inputs);
  const options = { method: request.method, headers: Object.fromEntries(request.headers.filter(([name]) => name !== "Authorization")), body: request.body };
  if (request.file) {
    options.body = new FormData();
    options.body.append("video", inputs.find((item) => item.isFile).control.files[0]);
    for (const [name, value] of request.fields) options.body.append(name, value);
  }
  output.textContent = "…";
  const started = performance.now();
  try {
    const response = await get(request.url, options);
    const type = response.headers.get("content-type") ?? "";
    const line = element("p", { className: "small", textContent: `${response.status} ${type} in ${Math.round(performance.now() - started)} ms` });
    output.replaceChildren(line, await show(response, type));
  } catch (error) {
    output.replaceChildren(element("p", { className: "small bad", textContent: `${error.status ?? ""} ${error.title ?? ""} ${error.message}` }));
  }
}

async function show(response, type) {
  if (/json|xml|text/.test(type)) return element("pre", { className: "mono", textContent: pretty(await textOf(response), type).slice(0, SHOWN) });
  const blob = await response.blob();
  const href = URL.createObjectURL(blob);
  if (type.startsWith("image/")) return element("img", { src: href, alt: "The response" });
  return element("a", { href, download: new URL(response.url).pathname.split("/").pop(), textContent: `Save ${bytes(blob.size)}` });
}

const pretty = (text, type) => (type.includes("json") && text.length < 10 * SHOWN ? JSON.stringify(JSON.parse(text), null, 2) : text);

/** The text of a response, as far as it arrives in time. */
async function textOf(response) {
  if (!response.body) return "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  setTimeout(() => reader.cancel(), STREAM_MS);
  for (let text = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return text;
    text += value;
  }
}
