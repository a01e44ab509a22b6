// A second result beside the first: another level, or another job of the same video. Its picture is copied from the
// first video, so that both show the same frame.

import { json } from "./api.js";
import { $, element } from "./dom.js";
import { levelTitle, loadLayer } from "./levels.js";
import { Painter } from "./painter.js";
import { frameAt } from "./player.js";
import { showProblem } from "./problem.js";

const JOBS = 100; // jobs that are searched for the same video

const painter = new Painter($("second-canvas"));
const picture = $("second-picture").getContext("2d");
let times = [0]; // presentation times of the second result, seconds

/** Offer what a result can be compared with. */
export async function offerComparisons(job, manifest, signal) {
  close();
  const entries = manifest.levels.map((level) => ({ job, manifest, level, title: levelTitle(level) }));
  const page = await json(`/jobs?limit=${JOBS}&status=succeeded`, { signal });
  for (const other of page.jobs.filter((item) => item.id !== job.id && item.video.sha256 === job.video.sha256)) {
    const created = new Date(other.created_at).toLocaleTimeString([], { timeStyle: "short" });
    for (const { tau } of other.links.levels) entries.push({ job: other, tau, title: `${other.params.model} · τ ${tau} · ${created}` });
  }
  $("compare").replaceChildren(new Option("nothing", ""), ...entries.map((entry, index) => new Option(entry.title, index)));
  $("compare-label").hidden = entries.length < 2;
  $("compare").onchange = ({ target }) => (target.value ? open(entries[target.value], signal).catch(showProblem) : close());
}

async function open({ job, manifest, level, tau, title }, signal) {
  const other = manifest ?? (await json(job.links.manifest, { signal }));
  const layer = await loadLayer(job, level ?? other.levels.find((item) => item.tau === tau), signal);
  if (!layer) return;
  times = other.video.pts_s;
  Object.assign($("second-picture"), { width: layer.width, height: layer.height });
  $("second-picture").style.aspectRatio = $("second-canvas").style.aspectRatio = `${layer.videoWidth} / ${layer.videoHeight}`;
  painter.setLayer(layer);
  $("second-name").textContent = title;
  $("second").hidden = $("first-name").hidden = false;
  $("pair").classList.add("comparing");
  $("pair").dispatchEvent(new Event("compare"));
}

function close() {
  $("second").hidden = $("first-name").hidden = true;
  $("pair").classList.remove("comparing");
  $("compare").value = "";
  painter.clear();
}

/** Draw the frame at a presentation time, in the style of the first painter. */
export function drawSecond(time, video, first) {
  if (!painter.layer) return;
  if (first.hasVideo) picture.drawImage(video, 0, 0, painter.layer.width, painter.layer.height);
  painter.frame = frameAt(times, time);
  const { opacity, outlines, dim, hasVideo } = first;
  Object.assign(painter, { opacity, outlines, dim, hasVideo });
  painter.redraw();
}
