// The form of options: models, suggested levels, and the fields that are sent with a video.

import { json } from "./api.js";
import { $, prose } from "./dom.js";

const OPTIONAL = ["start", "end", "fps", "motion"]; // fields that are not sent when empty
let models = null;

const fields = () => $("options").elements;
const modelOf = (name) => models.models.find((model) => model.name === name);

/** Load the models; those whose weights are missing cannot be chosen. */
export async function prepareOptions() {
  models = await json("/models");
  const rows = [...models.models].sort((one, other) => other.installed - one.installed);
  fields().model.replaceChildren(...rows.map((model) => {
    const option = new Option(model.installed ? model.name : `${model.name} (not installed)`, model.name, false, model.name === models.default);
    option.disabled = !model.installed;
    option.title = model.description;
    return option;
  }));
  const missing = rows.filter((model) => !model.installed);
  $("missing").replaceChildren(prose(missing.length ? `Not installed: ${missing.map((model) => model.name).join(", ")}. Install one by ${"`"}${missing[0].install}${"`"} on the worker.` : ""));
  suggestLevels();
}

export const defaultModel = () => models?.default ?? null;

/** Suggest the default tau of the model, a smaller and a larger one. */
function suggestLevels() {
  const tau = modelOf(fields().model.value).tau[fields().mode.value] ?? 1;
  fields().tau.value = [tau, tau * 0.5, tau * 2.5].map((value) => Number(value.toPrecision(2))).join(", ");
  summarize();
}

function summarize() {
  const { key_ratio, model, tau, start, end, fps } = fields();
  key_ratio.nextElementSibling.value = `${Math.round(key_ratio.value * 100)} %`;
  const part = [start.value && `from ${start.value} s`, end.value && `to ${end.value} s`, fps.value && `${fps.value} fps`].filter(Boolean);
  $("summary").textContent = [model.value, `τ ${tau.value}`, ...part].join(" · ");
}

/** Set fields, as a remedy names them. */
export function applyOptions(changes) {
  for (const [name, value] of Object.entries(changes)) fields()[name].value = [value].flat().join(", ");
  summarize();
}

/** Fill the form with the parameters of a job. */
export function copyOptions(params) {
  const same = ["mode", "model", "tau", "key_ratio", "edges", "background", ...OPTIONAL];
  applyOptions(Object.fromEntries(same.map((name) => [name, params[name] ?? ""])));
  for (const box of $("options").querySelectorAll("[name=format]")) box.checked = params.format.includes(box.value);
}

/** The body of POST /segment for a file. */
export function formOf(file) {
  const form = new FormData($("options"));
  const taus = form.get("tau").split(/[,;\s]+/).filter(Boolean);
  form.delete("tau");
  for (const tau of taus) form.append("tau", tau);
  for (const field of OPTIONAL) if (!form.get(field)) form.delete(field);
  if (!form.has("format")) form.append("format", "rle");
  form.append("video", file, file.name);
  return form;
}

/** Open the options at the first invalid field. */
export function showField(name) {
  const field = fields()[name.split(".")[0]];
  if (!(field instanceof HTMLElement)) return;
  $("options").closest("details").open = true;
  field.focus();
}

$("options").onsubmit = (event) => event.preventDefault();
$("options").oninput = ({ target }) => (target.name === "model" || target.name === "mode" ? suggestLevels() : summarize());
