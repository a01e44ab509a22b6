// The page: submit videos, follow a job, show its result. Each view has a URL: #/ and #/jobs/<id>.

import { json, Problem, useKey } from "./api.js";
import { $, copy } from "./dom.js";
import { listJobs } from "./jobs.js";
import { prepareOptions } from "./options.js";
import { hideMessage, showNote, showProblem } from "./problem.js";
import { watchJob } from "./progress.js";
import { player, showResult } from "./result.js";
import "./shortcuts.js";
import { again, fileOf, showSubmitProblem } from "./submit.js";
import { watchWorkers } from "./workers.js";

const TITLE = document.title;
let current = new AbortController(); // aborts the requests of the previous view

async function route() {
  current.abort();
  current = new AbortController();
  player.pause();
  hideMessage();
  document.title = TITLE;
  for (const id of ["start", "work", "result"]) $(id).hidden = true;
  const [, id] = location.hash.match(/^#\/jobs\/([0-9a-z]+)$/) || [];
  $("start").hidden = Boolean(id);
  try {
    await Promise.all([id && showJob(id, current.signal), listJobs()]);
  } catch (error) {
    await showProblem(error);
  }
}

async function showJob(id, signal) {
  const job = await json(`/jobs/${id}`, { signal });
  if (job.status === "succeeded") return showResult(job, signal);
  if (job.status === "queued" || job.status === "running") {
    await watchJob(job, signal);
    return route();
  }
  $("start").hidden = false;
  if (job.status === "failed") return showSubmitProblem(new Problem(job.error), job);
  showNote("Canceled.", `${job.video.name} was canceled.`, fileOf(id) ? [["Segment it again", () => again(job, {})]] : []);
}

async function start() {
  await prepareOptions().catch(showProblem);
  await route();
}

$("copy").onclick = ({ target }) => copy($("curl").textContent, target);
$("share").onclick = ({ target }) => copy(location.href, target);
$("key").onsubmit = (event) => {
  event.preventDefault();
  useKey(new FormData(event.target).get("key"));
  event.target.hidden = true;
  start();
};
addEventListener("hashchange", route);
watchWorkers();
start();
