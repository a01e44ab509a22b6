// The objects of the shown layer: the list, the selection, which are hidden, edits.

import { $ } from "./dom.js";
import { sendEdits, showEdits } from "./edits.js";
import { showLegend } from "./legend.js";
import { Painter } from "./painter.js";

export const painter = new Painter($("canvas"));
let view = null; // {links, timeOf, onDraw, onEdit} of the shown layer
let selected = new Set();
let last = Promise.resolve(); // the latest edit
let isMore = false; // whether a click adds to the selection

/** Show a layer and list its objects; a round cannot be edited. `options` are {links, timeOf(frame), onDraw(), onEdit()}. */
export function showObjects(layer, options) {
  view = options;
  selected = new Set();
  isMore = false;
  painter.setLayer(layer);
  refresh();
}

/** List and draw the objects again; the focus stays at the element that `focused` selects. */
function refresh(focused = null) {
  const { layer } = painter;
  const hadFocus = focused && $("legend").contains(document.activeElement);
  $("objects-title").textContent = layer.kind === "level" ? "Objects" : "Groups";
  $("all").hidden = !painter.hidden.size;
  showLegend(layer, selected, { isHidden: (id) => painter.hidden.has(id), onHide: toggle, onSelect: select, onPoint: point, timeOf: view.timeOf });
  $("edits").hidden = true;
  if (layer.edits) showEdits(layer, selected, { edit, isMore, onMore: () => ((isMore = !isMore), refresh()) });
  if (hadFocus) $("legend").querySelector(focused)?.focus();
  point(null);
}

function point(id) {
  painter.lit = id === null ? selected : new Set([id]);
  redraw();
}

function redraw() {
  painter.redraw();
  view.onDraw();
}

/** Select an object, or add it to the selection; an object that is selected alone is released. */
function select(id, isAdded) {
  const isOnly = selected.size === 1 && selected.has(id);
  if (!isAdded && !isMore) selected = new Set(isOnly ? [] : [id]);
  else if (!selected.delete(id)) selected.add(id);
  if (!selected.size) isMore = false;
  refresh(`[data-id="${id}"] .object`);
}

/** Send edits in the order of the clicks; the last response is shown. */
function edit(operations) {
  const { layer } = painter, { links } = view;
  const sent = (last = last.then(async () => {
    const edits = await sendEdits(links, operations);
    if (sent === last && layer === painter.layer) showEdited(layer, edits);
  }));
}

function showEdited(layer, edits) {
  if (edits) layer.applyEdits(edits);
  selected = new Set([...selected].filter((id) => layer.objects.some((object) => object.id === id)));
  isMore = false;
  painter.setLayer(layer);
  refresh(".object");
  view.onEdit();
}

/** Show or hide objects: as an edit of a level, for now in a round. */
function setHidden(ids, isHidden) {
  for (const id of ids) painter.hidden[isHidden ? "add" : "delete"](id);
  refresh(`[data-id="${ids[0]}"] .swatch`);
  if (painter.layer.edits) edit([{ op: isHidden ? "hide" : "show", ids }]);
}

const toggle = (id) => setHidden([id], !painter.hidden.has(id));

$("all").onclick = () => setHidden([...painter.hidden], false);
$("stage").onclick = (event) => {
  const id = painter.objectAt(event);
  if (id) select(id, event.shiftKey || event.ctrlKey || event.metaKey);
};
for (const [id, read] of [["opacity", (input) => Number(input.value)], ["outlines", (input) => input.checked], ["dim", (input) => input.checked]]) {
  $(id).oninput = ({ target }) => {
    painter[id] = read(target);
    redraw();
  };
}
