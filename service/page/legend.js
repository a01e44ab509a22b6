// The list of objects: name, score, the span of frames and the area over time.

import { $, element } from "./dom.js";
import { percent } from "./text.js";

const ROWS = 24;

/** Show the objects of a layer; `actions` are {isHidden(id), onHide(id), onSelect(id, isAdded), onPoint(id or null), timeOf(frame)}. */
export function showLegend(layer, selected, actions) {
  const shown = layer.objects.slice(0, ROWS);
  const more = layer.objects.length - shown.length;
  $("more").textContent = more ? `and ${more} more` : shown.length ? "" : "No objects at this level.";
  $("legend").replaceChildren(...shown.map((object, index) => row(object, index, selected.has(object.id), actions)));
}

function row(object, index, isSelected, actions) {
  const isHidden = actions.isHidden(object.id);
  const swatch = element("button", { type: "button", className: "swatch", title: index < 9 ? `Show or hide; key ${index + 1}` : "Show or hide", onclick: () => actions.onHide(object.id) });
  swatch.style.background = swatch.style.borderColor = object.color;
  swatch.setAttribute("aria-pressed", String(!isHidden));
  swatch.setAttribute("aria-label", `Show ${object.name}`);
  const span = `${actions.timeOf(object.first)}–${actions.timeOf(object.last)} s`;
  const main = element("button", { type: "button", className: "object", title: "Select; with Shift or Ctrl, select several", onclick: (event) => actions.onSelect(object.id, event.shiftKey || event.ctrlKey || event.metaKey) },
    element("span", { className: "name", textContent: object.name }),
    object.score === null ? null : element("span", { className: "score small", textContent: percent(object.score), title: "How surely this is a foreground object" }),
    element("span", { className: "muted small", textContent: span }),
    element("span", { className: "plot", innerHTML: plot(object) }));
  main.setAttribute("aria-pressed", String(isSelected));
  const score = object.score === null ? "" : `, score ${percent(object.score)}`;
  main.setAttribute("aria-label", `${object.name}${score}, visible from ${span}, ${(100 * Math.max(...object.areas)).toFixed(1)} % of the frame at most`);
  const item = element("li", { className: [object.weak && "weak", isHidden && "off"].filter(Boolean).join(" ") }, swatch, main);
  item.dataset.id = object.id;
  item.onpointerenter = main.onfocus = () => actions.onPoint(object.id);
  item.onpointerleave = main.onblur = () => actions.onPoint(null);
  return item;
}

/** An SVG of the area over time, and below it the span of frames that contain the object. */
function plot({ areas, color, first, last }) {
  const peak = Math.max(...areas) || 1;
  const steps = Array.from(areas, (value, frame) => `L${frame} ${(24 * (1 - value / peak)).toFixed(1)}h1`).join("");
  return `<svg viewBox="0 0 ${areas.length} 26" preserveAspectRatio="none" fill="${color}" aria-hidden="true"><path opacity=".85" d="M0 24${steps}V24z"/><path opacity=".3" d="M${first} 23H${last + 1}v3H${first}z"/></svg>`;
}
