// Edits of the objects of a level, which the service keeps beside the result: the buttons and the requests.

import { json } from "./api.js";
import { $, button, element } from "./dom.js";
import { showProblem } from "./problem.js";

/** The objects of a level after the edits; null if the service keeps none. */
export const loadEdits = async (links, signal) => (links.objects ? json(links.objects, { signal }) : null);

/** Send operations; returns the objects after them, which are the same after showing why that failed. */
export async function sendEdits(links, operations) {
  const body = JSON.stringify({ operations });
  try {
    return await json(links.objects, { method: "PATCH", headers: { "Content-Type": "application/json" }, body });
  } catch (error) {
    await showProblem(error);
    return loadEdits(links).catch(() => null);
  }
}

/** Show what can be done with the selected objects; `onMore` changes `isMore`, whether a click adds to the selection. */
export function showEdits(layer, selected, { edit, onMore, isMore }) {
  const ids = [...selected], [object] = layer.objects.filter((item) => selected.has(item.id));
  const isOne = ids.length === 1;
  const act = (label, operation, className = "") => button(label, () => edit([operation]), className);
  const more = button("Select more", onMore);
  more.setAttribute("aria-pressed", String(isMore));
  const tools = ids.length ? [
    isOne ? renameForm(object, edit) : null,
    isOne ? null : act(`Merge ${ids.length}`, { op: "merge", ids }),
    act(isOne ? "Only this one" : "Only these", { op: "only", ids }),
    act(object.hidden ? "Show" : "Hide", { op: object.hidden ? "show" : "hide", ids }),
    act("Delete", { op: "delete", ids }, "danger"),
    more,
  ] : [element("span", { className: "muted small", textContent: "Select objects here or in the picture to rename, merge, hide or delete them." })];
  if (layer.edits.can_undo) tools.push(act("Undo", { op: "undo" }));
  $("edits").hidden = !layer.objects.length && !layer.edits.can_undo;
  $("edits").replaceChildren(...tools.filter(Boolean));
}

function renameForm(object, edit) {
  const name = element("input", { value: object.given ?? "", placeholder: object.name, maxLength: 64, autocomplete: "off" });
  name.setAttribute("aria-label", "Name");
  return element("form", { onsubmit: (event) => (event.preventDefault(), edit([{ op: "rename", id: object.id, name: name.value }])) }, name, element("button", { textContent: "Rename" }));
}
