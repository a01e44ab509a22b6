// The result of a job: its levels over the video, objects, downloads.

import { address, get, json } from "./api.js";
import { drawSecond, offerComparisons } from "./compare.js";
import { $, button } from "./dom.js";
import { showCommand, showDownloads } from "./downloads.js";
import { bestLevel, levelTitle, linksOf, loadLayer, nothingStandsApart } from "./levels.js";
import { painter, showObjects } from "./objects.js";
import { Player } from "./player.js";
import { showProblem } from "./problem.js";
import { offerRounds } from "./rounds.js";
import { again } from "./submit.js";

export const player = new Player({ video: $("video"), onFrame: showFrame });
let result = null; // {job, manifest, levels, layers, signal}; levels ascend by tau, layers are promises
let chosen = 0;

export async function showResult(job, signal) {
  painter.clear();
  for (const id of ["result", "loading"]) $(id).hidden = false;
  for (const id of ["legend", "downloads"]) $(id).replaceChildren();
  $("result-title").textContent = document.title = job.video.name;
  $("remove").onclick = () => remove(job);
  const manifest = await json(job.links.manifest, { signal });
  const levels = [...manifest.levels].sort((one, other) => one.tau - other.tau);
  result = { job, manifest, levels, layers: [], signal };
  const { video } = manifest;
  $("facts").textContent = `${video.width}×${video.height} · ${video.frame_count} frames · ${manifest.model.name} · ${(manifest.timings_s.total || 0).toFixed(1)} s`;
  $("warnings").textContent = manifest.warnings.join(" ");
  $("scrub").max = video.frame_count - 1;
  player.open(video.pts_s.map((time) => time - video.pts_s[0]), job.links.source ? await address(job.links.source) : null);
  showCommand(job);
  showLevels(levels);
  await choose(levels.indexOf(bestLevel(manifest.levels)));
  await offerComparisons(job, manifest, signal);
  for (const index of levels.keys()) await layerOf(index); // so that the slider shows them at once
}

async function remove(job) {
  if (!confirm(`Delete ${job.video.name} and its results?`)) return;
  await get(job.links.self, { method: "DELETE" }).catch(showProblem);
  location.hash = "#/";
}

// --- levels

function showLevels(levels) {
  $("grain").hidden = levels.length < 2 && levels[0].rounds.length < 2;
  $("level-slider").hidden = levels.length < 2;
  $("level").max = levels.length - 1;
  $("ticks").replaceChildren(...levels.map(() => document.createElement("i")));
}

const layerOf = (index) => (result.layers[index] ??= loadLayer(result.job, result.levels[index], result.signal));

/** Show a level, by its place on the slider. */
export async function choose(index) {
  chosen = Math.max(0, Math.min(result.levels.length - 1, index));
  const level = result.levels[chosen], { job, signal } = result;
  $("level").value = chosen;
  showTitle(level);
  const layer = await layerOf(chosen);
  if (!layer || signal.aborted || level !== result.levels[chosen]) return; // another level was chosen meanwhile
  $("loading").hidden = true;
  showNothing(level);
  const onEdit = () => {
    showTitle(level, layer);
    showDownloads(job, level.tau, layer.edits?.can_undo);
  };
  const timeOf = (frame) => result.manifest.video.pts_s[frame].toFixed(1);
  const show = (shown) => showObjects(shown, { links: linksOf(job, level), timeOf, onDraw: drawOther, onEdit });
  onEdit();
  show(layer);
  offerRounds(job, level, layer, show, signal);
}

function showTitle(level, layer) {
  const title = levelTitle(level, layer?.objects);
  $("level-name").textContent = $("first-name").textContent = title;
  $("level").setAttribute("aria-valuetext", title);
}

/** Say that nothing stands apart at a level, and offer another one. */
function showNothing(level) {
  const isEmpty = nothingStandsApart(level);
  $("nothing").hidden = !isEmpty;
  if (!isEmpty) return;
  const other = bestLevel(result.manifest.levels);
  const smaller = Number((result.levels[0].tau / 2).toPrecision(2));
  const offer = nothingStandsApart(other)
    ? button(`Segment again with τ ${smaller}`, () => again(result.job, { tau: smaller }))
    : button(`Show τ ${other.name}`, () => choose(result.levels.indexOf(other)));
  $("nothing").replaceChildren(`Nothing stands apart at τ ${level.name}. `, offer);
}

// --- frames

const drawOther = () => drawSecond(result.manifest.video.pts_s[player.frame], player.video, painter);

function showFrame(frame) {
  if (!result) return;
  const { pts_s, source_frames } = result.manifest.video;
  const last = player.times.length - 1;
  if (painter.hasVideo !== player.hasVideo) {
    painter.hasVideo = player.hasVideo;
    painter.redraw();
  }
  painter.draw(frame);
  drawOther();
  $("scrub").value = frame;
  $("scrub").setAttribute("aria-valuetext", `frame ${frame} of ${last + 1}`);
  $("clock").textContent = `${pts_s[frame].toFixed(2)} s · ${frame}/${last}`;
  $("source-frame").textContent = source_frames && source_frames[frame] !== frame ? `frame ${source_frames[frame]} of the file` : "";
  $("legend").style.setProperty("--at", (frame + 0.5) / player.times.length);
  $("play").classList.toggle("playing", player.playing);
  $("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
}

// --- controls

$("play").onclick = () => player.toggle();
$("scrub").oninput = ({ target }) => player.seek(Number(target.value));
$("level").oninput = ({ target }) => choose(Number(target.value)).catch(showProblem);
$("pair").addEventListener("compare", drawOther);

export const step = (by) => choose(chosen + by);
