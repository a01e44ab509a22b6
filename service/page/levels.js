// The levels of a result: which one to show first, what to say about it, its masks.

import { json } from "./api.js";
import { loadEdits } from "./edits.js";
import { LevelLayer } from "./layers.js";
import { count } from "./text.js";

const WHOLE_FRAME = 0.9; // mean share of the frame from which a single object is the whole frame

/** Whether a level is one object of nearly the whole frame, or has none. */
export function nothingStandsApart(level) {
  if (typeof level.nothing_stands_apart === "boolean") return level.nothing_stands_apart;
  return !level.objects.length || (level.objects.length === 1 && level.objects[0].area > WHOLE_FRAME);
}

/** The level to show first: the first requested one in which something stands apart. */
export const bestLevel = (levels) => levels.find((level) => !nothingStandsApart(level)) ?? levels[0];

/** A level in words; `objects` are those after the edits. */
export function levelTitle(level, objects = level.objects) {
  const hidden = objects.filter((object) => object.hidden).length;
  const visible = `${count(objects.length - hidden, "object")}${hidden ? `, ${hidden} hidden` : ""}`;
  return `τ ${level.name} · ${nothingStandsApart(level) ? "nothing stands apart" : visible}`;
}

export const linksOf = (job, level) => job.links.levels.find((links) => links.tau === level.tau);

/** The masks of a level with the edits of its objects; null if they are no longer wanted. */
export async function loadLayer(job, level, signal) {
  const links = linksOf(job, level);
  const [document, edits] = await Promise.all([json(`${links.rle}&original=true`, { signal }), loadEdits(links, signal)]);
  const layer = await LevelLayer.of(level, document, () => !signal.aborted);
  if (layer && edits) layer.applyEdits(edits);
  return layer;
}
