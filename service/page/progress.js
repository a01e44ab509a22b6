// A queued or running job: stage, progress, remaining time, cancellation.

import { address, follow, get } from "./api.js";
import { $ } from "./dom.js";
import { showProblem } from "./problem.js";
import { percent, remaining } from "./text.js";

const STAGES = ["decode", "motion", "features", "attention", "clustering", "masks"];
let fraction = 0; // the bar never moves backwards

/** Show the progress of an upload or of a job. */
export function showProgress({ where, fraction: share, left = "", stage = null }) {
  fraction = share;
  $("bar").value = fraction;
  $("where").textContent = where;
  $("left").textContent = left;
  const now = STAGES.indexOf(stage);
  [...$("stages").children].forEach((item, index) => (item.className = index < now ? "done" : index === now ? "now" : ""));
}

function whereOf(job) {
  if (job.waiting_for_worker) return "waiting for a worker";
  if (job.status === "queued") return job.position ? `queued, ${job.position} ahead` : "queued, next in line";
  if (!job.stage) return job.weights_installed === false ? `loading the weights of ${job.params.model}` : "starting";
  return job.frames_total ? `${job.stage}: frame ${job.frames_done} of ${job.frames_total}` : job.stage;
}

function showJob(job) {
  if (job.links.preview && $("preview").hidden) showPreview(job.links.preview);
  const left = job.status === "queued" ? "" : remaining(job.eta_s);
  showProgress({ where: whereOf(job), fraction: Math.max(fraction, job.fraction), left, stage: job.stage });
  document.title = `${percent(fraction)} · ${job.video.name}`;
}

function showPreview(link) {
  $("preview").hidden = false;
  const hide = () => ($("preview").hidden = true);
  $("preview").querySelector("img").onerror = hide; // the job has ended meanwhile
  address(link).then((src) => ($("preview").querySelector("img").src = src)).catch(hide);
}

/** Follow a job until it has ended; the promise resolves then. */
export async function watchJob(job, signal) {
  $("work").hidden = false;
  $("work-title").textContent = job.video.name;
  $("cancel").disabled = false;
  $("cancel").onclick = async () => {
    $("cancel").disabled = true;
    await get(job.links.cancel, { method: "POST" }).catch(showProblem);
  };
  fraction = 0;
  $("preview").hidden = true;
  showJob(job);
  await follow(job.links.events, showJob, signal);
}
