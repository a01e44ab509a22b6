// What can be shown over the video: the result of each level, and the rounds that led to it. Every layer gives a
// label map for a frame; colours stay with the larger part from one layer to the next.

import { area, paint, runs } from "/page/rle.js";

const MAPS_KEPT = 48;
const LARGEST_MAP = 960; // pixels on the longer side: enough for a screen, quick enough for every frame
const MOST_GROUPS = 160; // a round with more than these is noise to the eye
const COMPARED_FRAMES = 12;
const PAUSE_EVERY_MS = 24;

const breathe = () => new Promise((resolve) => setTimeout(resolve));

class Layer {
  constructor(title, kind, tau, size, frames) {
    Object.assign(this, { title, kind, tau, frames, objects: [], maps: new Map() });
    const [height, width] = size;
    this.step = Math.max(1, Math.ceil(Math.max(height, width) / LARGEST_MAP));
    this.videoHeight = height;
    this.videoWidth = width;
    this.height = Math.ceil(height / this.step);
    this.width = Math.ceil(width / this.step);
  }

  /** Labels of a frame, row by row; kept for a while. */
  map(frame) {
    let found = this.maps.get(frame);
    if (found) this.maps.delete(frame);
    else found = this.draw(frame);
    this.maps.set(frame, found);
    if (this.maps.size > MAPS_KEPT) this.maps.delete(this.maps.keys().next().value);
    return found;
  }
}

/** The masks of one level. */
export class LevelLayer extends Layer {
  static async of(level, document, isCurrent) {
    const layer = new LevelLayer(`τ ${level.name}`, "level", level.tau, document.size, document.frames);
    const byId = new Map();
    for (const [index, each] of level.objects.entries()) {
      byId.set(each.id, { id: each.id, color: hue(index), first: each.first_frame, last: each.last_frame, areas: new Float32Array(document.frames.length) });
    }
    let paused = performance.now();
    const pixels = document.size[0] * document.size[1];
    for (const [index, frame] of document.frames.entries()) {
      for (const each of frame.objects) {
        const object = byId.get(each.id);
        if (object) object.areas[index] = area(runs(each.rle.counts)) / pixels;
      }
      if (performance.now() - paused > PAUSE_EVERY_MS) {
        await breathe();
        if (!isCurrent()) return null;
        paused = performance.now();
      }
    }
    layer.objects = [...byId.values()];
    return layer;
  }

  draw(frame) {
    const labels = new Uint16Array(this.width * this.height);
    for (const each of this.frames[frame].objects) {
      paint(labels, this.width, this.videoHeight, this.step, runs(each.rle.counts), each.id);
    }
    return labels;
  }
}

/** The groups of patches after one round. Where the level sees background, a group is not shown. */
class RoundLayer extends Layer {
  constructor(level, document, groups, count, number, result) {
    super(`τ ${level.name} · round ${number}`, "round", level.tau, [result.videoHeight, result.videoWidth], document.frames);
    Object.assign(this, { grid: document.grid, groups, result });
    const [h, w] = document.grid;
    const objects = [];
    for (let id = 1; id <= count; id++) objects.push({ id, color: null, first: -1, last: -1, areas: new Float32Array(this.frames.length) });
    for (const [index, frame] of this.frames.entries()) {
      for (let i = 0; i < frame.length; i += 2) {
        const object = objects[groups[frame[i]]];
        object.areas[index] += frame[i + 1] / (h * w);
        if (object.first < 0) object.first = index;
        object.last = index;
      }
    }
    const ground = background(this, result);
    this.objects = objects.filter((each) => !ground.has(each.id) && each.first >= 0);
    this.hidden = ground;
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

/** The rounds of a level before its last, coarsest first thrown out where they are too many. */
export function roundLayers(level, document, result) {
  const layers = [];
  let groups = Array.from({ length: level.rounds[0].centroids }, (_, index) => index);
  level.rounds.slice(0, -1).forEach((round, number) => {
    if (number > 0) groups = groups.map((group) => round.parents[group]);
    if (round.centroids <= MOST_GROUPS) layers.push(new RoundLayer(level, document, groups, round.centroids, number + 1, result));
  });
  return layers;
}

function* sampled(frames) {
  const step = Math.max(1, frames / COMPARED_FRAMES);
  for (let frame = 0; frame < frames; frame += step) yield Math.floor(frame);
}

/** How many pixels each pair of labels shares, as [one, other, pixels], most first. */
function overlaps(one, other) {
  const counts = new Map();
  for (const frame of sampled(one.frames.length)) {
    const a = one.map(frame), b = other.map(frame), stride = Math.max(1, Math.round(one.width / 160));
    for (let y = 0; y < one.height; y += stride) {
      for (let x = 0; x < one.width; x += stride) {
        const pair = a[y * one.width + x] * 65536 + b[y * one.width + x];
        counts.set(pair, (counts.get(pair) || 0) + 1);
      }
    }
  }
  return [...counts].map(([pair, pixels]) => [Math.floor(pair / 65536), pair % 65536, pixels]).sort((p, q) => q[2] - p[2]);
}

/** Groups that lie mostly where the level sees background. */
function background(layer, result) {
  const inside = new Map(), outside = new Map();
  for (const [id, label, pixels] of overlaps(layer, result)) {
    const into = label ? inside : outside;
    into.set(id, (into.get(id) || 0) + pixels);
  }
  return new Set([...outside].filter(([id, pixels]) => pixels > (inside.get(id) || 0)).map(([id]) => id));
}

/** Give each layer colours: from its neighbour nearer to `base` the largest share of an object keeps the colour. */
export function colorLayers(layers, base) {
  const palette = layers[base].objects.map((each, index) => (each.color = hue(index)));
  const spread = (from, to) => {
    const before = new Map(layers[from].objects.map((each) => [each.id, each.color]));
    const byId = new Map(layers[to].objects.map((each) => [each.id, each]));
    const used = new Set(), given = new Set();
    for (const [old, fresh] of overlaps(layers[from], layers[to])) {
      if (!old || !fresh || used.has(old) || given.has(fresh) || !before.has(old) || !byId.has(fresh)) continue;
      byId.get(fresh).color = before.get(old);
      used.add(old);
      given.add(fresh);
    }
    const taken = new Set([...given].map((id) => byId.get(id).color));
    let next = 0;
    for (const each of layers[to].objects) {
      if (given.has(each.id)) continue;
      do each.color = hue(next++); while (taken.has(each.color) || palette.includes(each.color));
      taken.add(each.color);
    }
  };
  for (let i = base; i > 0; i--) spread(i, i - 1);
  for (let i = base; i < layers.length - 1; i++) spread(i, i + 1);
}

const BRIGHT = ["#ff5d5d", "#3d8bff", "#ffc53d", "#25c27a", "#b06cff", "#ff8a3d", "#18c5d9", "#ff6fb5", "#9ad32e", "#7d7aff"];

/** Colours without end, far from one another; brighter than those of the palette files. */
export function hue(index) {
  if (index < BRIGHT.length) return BRIGHT[index];
  const h = (index * 137.508 + 20) % 360, s = 0.72, l = index % 2 ? 0.62 : 0.5;
  const channel = (n) => {
    const k = (n + h / 30) % 12;
    return Math.round(255 * (l - s * Math.min(l, 1 - l) * Math.max(-1, Math.min(k - 3, 9 - k, 1)))).toString(16).padStart(2, "0");
  };
  return `#${channel(0)}${channel(8)}${channel(4)}`;
}
