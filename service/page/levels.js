// The levels of a result: which one to show first, what to say about it, its masks.

import { json } from "/page/api.js";
import { LevelLayer } from "/page/layers.js";
import { count } from "/page/text.js";

const WHOLE_FRAME = 0.9; // mean share of the frame from which a single object is the whole frame

/** Whether a level is one object of nearly the whole frame, or has none. */
export function nothingStandsApart(level) {
  if (typeof level.nothing_stands_apart === "boolean") return level.nothing_stands_apart;
  return !level.objects.length || (level.objects.length === 1 && level.objects[0].area > WHOLE_FRAME);
}

/** The level to show first: the first requested one in which something stands apart. */
export const bestLevel = (levels) => levels.find((level) => !nothingStandsApart(level)) ?? levels[0];

/** A level in words. */
export const levelTitle = (level) => `τ ${level.name} · ${nothingStandsApart(level) ? "nothing stands apart" : count(level.objects.length, "object")}`;

/** The links of a level. */
export const linksOf = (job, level) => job.links.levels.find((links) => links.tau === level.tau);

/** The masks of a level; null if they are no longer wanted. */
export const loadLayer = async (job, level, signal) => LevelLayer.of(level, await json(linksOf(job, level).rle, { signal }), () => !signal.aborted);
