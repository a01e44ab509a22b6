// Videos that the user drops or chooses: one opens its job, several become a batch with a row each.

import { json, Problem, send } from "./api.js";
import { cancelAction, showBatchRow, updateBatchRow } from "./batch.js";
import { $ } from "./dom.js";
import { listJobs } from "./jobs.js";
import { applyOptions, copyOptions, defaultModel, formOf, showField } from "./options.js";
import { showProgress } from "./progress.js";
import { hideMessage, showNote, showProblem } from "./problem.js";
import { remedies } from "./remedies.js";
import { bytes, percent } from "./text.js";

const SAMPLE = "/page/sample.mp4";
const POLL_MS = 1500;
const files = new Map(); // job id -> File, while the page is open

export const fileOf = (id) => files.get(id);

const newKey = () => (crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`);

function upload(file, onProgress) {
  const sending = send(formOf(file), newKey(), onProgress);
  sending.done.then((job) => files.set(job.id, file), () => {});
  return sending;
}

const take = (chosen) => (chosen.length > 1 ? submitBatch([...chosen]) : chosen[0] && submitOne(chosen[0]));

async function submitOne(file) {
  hideMessage();
  for (const id of ["start", "result"]) $(id).hidden = true;
  $("work").hidden = false;
  $("work-title").textContent = file.name;
  showProgress({ where: "uploading", fraction: 0 });
  const sending = upload(file, (share) => showProgress({ where: share < 1 ? `uploading, ${percent(share)} of ${bytes(file.size)}` : "submitting", fraction: share }));
  $("cancel").disabled = false;
  $("cancel").onclick = () => sending.abort();
  try {
    location.hash = `#/jobs/${(await sending.done).id}`;
  } catch (error) {
    $("work").hidden = true;
    $("start").hidden = false;
    await showSubmitProblem(error, {}, file);
  }
}

/** Submit several videos one after another; they run while others are sent. */
async function submitBatch(list) {
  if (location.hash.length > 2) location.hash = "#/";
  hideMessage();
  for (const [row, file] of list.map((file) => [showBatchRow(file.name), file])) await submitRow(row, file);
}

async function submitRow(row, file) {
  const action = ["Cancel", () => sending.abort()];
  const sending = upload(file, (share) => updateBatchRow(row, { text: share < 1 ? `uploading ${percent(share)}` : "submitting", fraction: 0.09 * share, action }));
  try {
    const job = await sending.done;
    followRow(row, job, file).catch(showProblem);
  } catch (error) {
    updateBatchRow(row, error.name === "AbortError" ? { text: "canceled", ended: "canceled" } : { text: `${error.title}: ${error.message}`, ended: "failed" });
  }
}

async function followRow(row, submitted, file) {
  for (let job = submitted; ; ) {
    const hasEnded = !["queued", "running"].includes(job.status);
    const [remedy] = job.status === "failed" ? remedies(job.error, { params: job.params, model: defaultModel() }) : [];
    updateBatchRow(row, { job, action: remedy ? [remedy.label, () => retryRow(row, job, remedy.changes, file)] : hasEnded ? null : cancelAction(job) });
    if (hasEnded) return listJobs();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    job = await json(job.links.self).catch((error) => (error.status === 404 ? { status: "deleted" } : job));
  }
}

function retryRow(row, job, changes, file) {
  copyOptions(job.params);
  applyOptions(changes);
  return submitRow(row, file);
}

/** Show why a job failed, with buttons that change the parameters and submit the video again. */
export async function showSubmitProblem(error, job, file = fileOf(job.id)) {
  const problem = error instanceof Problem ? error : {};
  const actions = remedies(problem, { params: job.params, model: defaultModel() }).map(({ label, changes }) => [file ? label : `${label} and choose the video again`, () => again(job, changes, file)]);
  const [field] = problem.errors ?? [];
  if (field) actions.push([`Correct ${field.field.split(".")[0]}`, () => showField(field.field)]);
  await showProblem(error, actions);
}

/** Submit the video of a job again with some parameters changed. */
export function again(job, changes, file = fileOf(job.id)) {
  if (job.params) copyOptions(job.params);
  applyOptions(changes);
  if (file) return submitOne(file);
  history.replaceState(null, "", "#/");
  $("result").hidden = true;
  $("start").hidden = false;
  showNote("Parameters are set.", `Choose the video again: ${$("summary").textContent}.`);
}

async function takeSample() {
  const response = await fetch(SAMPLE);
  await submitOne(new File([await response.blob()], "sample.mp4", { type: "video/mp4" }));
}

$("file").onchange = ({ target }) => {
  take(target.files);
  target.value = ""; // the same file may be chosen again
};
$("sample").onclick = () => takeSample().catch(showProblem);
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if ($("work").hidden) take(event.dataTransfer.files);
});
