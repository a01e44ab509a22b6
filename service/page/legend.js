// The list of objects: name, score, the span of frames and the area over time.

import { $, element } from "/page/dom.js";
import { percent } from "/page/text.js";

const ROWS = 24;

/**
 * Show the objects of a layer.
 *
 * @param layer objects in the order of the list
 * @param selected ids of the selected objects
 * @param actions {isHidden(id), onHide(id), onSelect(id, isAdded), onPoint(id or null), timeOf(frame)}
 */
export function showLegend(layer, selected, actions) {
  const shown = layer.objects.slice(0, ROWS);
  const more = layer.objects.length - shown.length;
  $("more").textContent = more ? `and ${more} more` : shown.length ? "" : "No objects at this level.";
  $("legend").replaceChildren(...shown.map((object, index) => row(object, index, selected.has(object.id), actions)));
  requestAnimationFrame(() => shown.forEach((object, index) => plot($("legend").children[index]?.querySelector("canvas"), object)));
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
    element("span", { className: "plot" }, element("canvas")));
  main.setAttribute("aria-pressed", String(isSelected));
  const score = object.score === null ? "" : `, score ${percent(object.score)}`;
  main.setAttribute("aria-label", `${object.name}${score}, visible from ${span}, ${(100 * Math.max(...object.areas)).toFixed(1)} % of the frame at most`);
  const item = element("li", { className: [object.weak && "weak", isHidden && "off"].filter(Boolean).join(" ") }, swatch, main);
  item.dataset.id = object.id;
  item.onpointerenter = main.onfocus = () => actions.onPoint(object.id);
  item.onpointerleave = main.onblur = () => actions.onPoint(null);
  return item;
}

/** Plot the area over time and the span of frames that contain the object. */
function plot(canvas, object) {
  if (!canvas) return;
  const scale = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight, context = canvas.getContext("2d");
  canvas.width = width * scale;
  canvas.height = height * scale;
  context.scale(scale, scale);
  const areas = object.areas, peak = Math.max(...areas) || 1, x = (frame) => (frame / Math.max(1, areas.length)) * width;
  context.fillStyle = object.color;
  context.globalAlpha = 0.25;
  context.fillRect(x(object.first), height - 3, Math.max(2, x(object.last + 1) - x(object.first)), 3);
  context.globalAlpha = 0.85;
  context.beginPath();
  context.moveTo(0, height);
  areas.forEach((value, frame) => {
    const y = height - 2 - (value / peak) * (height - 4);
    context.lineTo(x(frame), value ? y : height);
    context.lineTo(x(frame + 1), value ? y : height);
  });
  context.lineTo(width, height);
  context.fill();
}
