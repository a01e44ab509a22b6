// Layers that can be drawn over the video: the result of each level, and the rounds of Algorithm 1 before it. A layer
// renders label maps. Levels have the colours of their manifest; from a level to its rounds, a colour follows the
// largest overlap.

import { area, paint, runs } from "./rle.js";

const CACHED_MAPS = 48;
const MAX_SIDE = 960; // pixels of the longer side: enough for a screen, fast enough for playback
const MAX_CLUSTERS = 160; // rounds with more clusters look like noise
const COMPARED_FRAMES = 12;
const YIELD_EVERY_MS = 24;
const WEAK_SCORE = 0.5; // objects below it are more likely background

const yieldToBrowser = () => new Promise((resolve) => setTimeout(resolve));

class Layer {
  constructor(title, kind, size, frames) {
    Object.assign(this, { title, kind, frames, objects: [], maps: new Map() });
    const [height, width] = size;
    this.step = Math.max(1, Math.ceil(Math.max(height, width) / MAX_SIDE));
    this.videoHeight = height;
    this.videoWidth = width;
    this.height = Math.ceil(height / this.step);
    this.width = Math.ceil(width / this.step);
  }

  /** Label map of a frame, row-major, from an LRU cache. */
  map(frame) {
    let labels = this.maps.get(frame);
    if (labels) this.maps.delete(frame);
    else labels = this.draw(frame);
    this.maps.set(frame, labels);
    if (this.maps.size > CACHED_MAPS) this.maps.delete(this.maps.keys().next().value);
    return labels;
  }
}

function objectOf(item, frames) {
  const score = item.object_score ?? 1 - item.background_score;
  return { id: item.id, name: item.name ?? `Object ${item.id}`, given: item.name, hidden: item.hidden, color: item.color, score, first: item.first_frame, last: item.last_frame, areas: new Float32Array(frames) };
}

/** The masks of one level; objects are ordered by how surely they are foreground. */
export class LevelLayer extends Layer {
  static async of(level, document, isCurrent) {
    const layer = new LevelLayer(`τ ${level.name}`, "level", document.size, document.frames);
    const byId = new Map(level.objects.map((item) => [item.id, objectOf(item, document.frames.length)]));
    let yieldedAt = performance.now();
    const pixels = document.size[0] * document.size[1];
    for (const [index, frame] of document.frames.entries()) {
      for (const item of frame.objects) {
        const object = byId.get(item.id);
        if (object) object.areas[index] = area(runs(item.rle.counts)) / pixels;
      }
      if (performance.now() - yieldedAt > YIELD_EVERY_MS) {
        await yieldToBrowser();
        if (!isCurrent()) return null;
        yieldedAt = performance.now();
      }
    }
    layer.originals = byId;
    layer.show([...byId.values()]);
    return layer;
  }

  /** Order the objects by score, and find the weak ones. */
  show(objects) {
    this.objects = objects.sort((one, other) => other.score - one.score || one.id - other.id);
    this.objects.forEach((object, index) => (object.weak = index > 0 && object.score < WEAK_SCORE));
  }

  /** Show the objects after the edits: merged ones have one label, deleted ones none. */
  applyEdits(edits) {
    this.edits = edits;
    this.labels = new Map(edits.objects.flatMap((item) => item.members.map((member) => [member, item.id])));
    this.maps.clear();
    this.show(edits.objects.map((item) => {
      const areas = new Float32Array(this.frames.length);
      for (const member of item.members) this.originals.get(member).areas.forEach((value, frame) => (areas[frame] += value));
      return { ...objectOf(item, 0), areas };
    }));
  }

  draw(frame) {
    const labels = new Uint16Array(this.width * this.height);
    for (const item of this.frames[frame].objects) {
      paint(labels, this.width, this.videoHeight, this.step, runs(item.rle.counts), this.labels ? this.labels.get(item.id) ?? 0 : item.id);
    }
    return labels;
  }
}

/** Clusters of patches after one round; clusters mostly on the background of the level are hidden. */
class RoundLayer extends Layer {
  constructor(level, document, groups, count, number, result) {
    super(`round ${number} of ${level.rounds.length}`, "round", [result.videoHeight, result.videoWidth], document.frames);
    Object.assign(this, { grid: document.grid, groups, result });
    const [h, w] = document.grid;
    const objects = [];
    for (let id = 1; id <= count; id++) objects.push({ id, name: `Group ${id}`, color: null, score: null, weak: false, first: -1, last: -1, areas: new Float32Array(this.frames.length) });
    for (const [index, frame] of this.frames.entries()) {
      for (let i = 0; i < frame.length; i += 2) {
        const object = objects[groups[frame[i]]];
        object.areas[index] += frame[i + 1] / (h * w);
        if (object.first < 0) object.first = index;
        object.last = index;
      }
    }
    const hidden = backgroundOf(this, result);
    this.objects = objects.filter((object) => !hidden.has(object.id) && object.first >= 0).sort((one, other) => mean(other.areas) - mean(one.areas));
    this.hidden = hidden;
    this.maps.clear();
  }

  draw(frame) {
    const [h, w] = this.grid, patches = new Uint16Array(h * w), runs = this.frames[frame];
    for (let i = 0, at = 0; i < runs.length; at += runs[i + 1], i += 2) {
      const id = this.groups[runs[i]] + 1;
      patches.fill(this.hidden && this.hidden.has(id) ? 0 : id, at, at + runs[i + 1]);
    }
    const labels = new Uint16Array(this.width * this.height);
    for (let y = 0; y < this.height; y++) {
      const row = Math.floor((y * h) / this.height) * w;
      for (let x = 0; x < this.width; x++) labels[y * this.width + x] = patches[row + Math.floor((x * w) / this.width)];
    }
    return labels;
  }
}

const mean = (areas) => areas.reduce((sum, value) => sum + value, 0) / areas.length;

/** Layers for the rounds of a level before the last one, as far as they do not look like noise. */
export function roundLayers(level, document, result) {
  const layers = [];
  let groups = Array.from({ length: level.rounds[0].centroids }, (_, index) => index);
  level.rounds.slice(0, -1).forEach((round, number) => {
    if (number > 0) groups = groups.map((group) => round.parents[group]);
    if (round.centroids <= MAX_CLUSTERS) layers.push(new RoundLayer(level, document, groups, round.centroids, number + 1, result));
  });
  let later = result;
  for (const layer of [...layers].reverse()) {
    passColors(later, layer);
    later = layer;
  }
  return layers;
}

/** Overlap of each pair of labels, as [label a, label b, pixels], largest first. */
function overlaps(first, second) {
  const counts = new Map();
  for (let frame = 0; frame < first.frames.length; frame += Math.ceil(first.frames.length / COMPARED_FRAMES)) {
    const a = first.map(frame), b = second.map(frame), stride = Math.max(1, Math.round(first.width / 160));
    for (let y = 0; y < first.height; y += stride) {
      for (let x = 0; x < first.width; x += stride) {
        const pair = a[y * first.width + x] * 65536 + b[y * first.width + x];
        counts.set(pair, (counts.get(pair) || 0) + 1);
      }
    }
  }
  return [...counts].map(([pair, pixels]) => [Math.floor(pair / 65536), pair % 65536, pixels]).sort((p, q) => q[2] - p[2]);
}

/** Ids of clusters that lie mostly on the background of the level. */
function backgroundOf(layer, result) {
  const inside = new Map(), outside = new Map();
  for (const [id, label, pixels] of overlaps(layer, result)) {
    const into = label ? inside : outside;
    into.set(id, (into.get(id) || 0) + pixels);
  }
  return new Set([...outside].filter(([id, pixels]) => pixels > (inside.get(id) || 0)).map(([id]) => id));
}

/** Give the objects of a layer the colours of another one: each colour passes to the object with the largest overlap. */
function passColors(from, to) {
  const before = new Map(from.objects.map((object) => [object.id, object.color]));
  const byId = new Map(to.objects.map((object) => [object.id, object]));
  const used = new Set();
  for (const [old, fresh] of overlaps(from, to)) {
    if (used.has(old) || !before.has(old) || !byId.has(fresh) || byId.get(fresh).color) continue;
    byId.get(fresh).color = before.get(old);
    used.add(old);
  }
  let next = before.size;
  for (const object of to.objects.filter((item) => !item.color)) {
    object.color = `hsl(${(137.508 * next++ + 20) % 360} 72% 56%)`; // consecutive hues are far apart
  }
}
