// The rows of a batch: name, progress and state of each video.

import { get } from "/page/api.js";
import { $, button, element } from "/page/dom.js";
import { showProblem } from "/page/problem.js";
import { percent } from "/page/text.js";

/** Append a row for a file. */
export function showBatchRow(name) {
  const bar = element("progress", { max: 1, value: 0 });
  const row = { name: element("a", { textContent: name }), bar, text: element("span", { className: "muted small", textContent: "waiting" }), cancel: button("Cancel", null, "quiet danger"), ended: null };
  bar.setAttribute("aria-label", name);
  row.item = element("li", {}, row.name, bar, row.text, row.cancel);
  $("batch-rows").append(row.item);
  rows.push(row);
  summarize();
  return row;
}

const rows = [];

/** Show a change of a row: the state of its upload, or its job. */
export function updateBatchRow(row, { text, fraction, cancel, ended, job }) {
  if (job) ({ text, fraction, cancel, ended } = stateOf(job));
  if (job?.id) row.name.href = `#/jobs/${job.id}`;
  if (text !== undefined) row.text.textContent = text;
  if (fraction !== undefined) row.bar.value = Math.max(row.bar.value, fraction);
  if (cancel) row.cancel.onclick = cancel;
  if (ended) {
    row.ended = ended;
    row.item.className = ended;
    row.cancel.hidden = true;
  }
  summarize();
}

function stateOf(job) {
  const cancel = () => get(job.links.cancel, { method: "POST" }).catch(showProblem);
  if (job.status === "queued") return { text: job.position ? `queued, ${job.position} ahead` : "queued", fraction: 0.1, cancel };
  if (job.status === "running") return { text: `${job.stage ?? "starting"}, ${percent(job.fraction)}`, fraction: 0.1 + 0.9 * job.fraction, cancel };
  if (job.status === "failed") return { text: `${job.error.title}: ${job.error.detail}`, ended: "failed" };
  return { text: job.status === "succeeded" ? "done" : job.status, fraction: 1, ended: job.status };
}

function summarize() {
  const done = rows.filter((row) => row.ended).length;
  const failed = rows.filter((row) => row.ended === "failed").length;
  $("batch").hidden = !rows.length;
  $("batch-title").textContent = `${done} of ${rows.length} videos done${failed ? `, ${failed} failed` : ""}`;
  $("batch-bar").value = rows.reduce((sum, row) => sum + (row.ended ? 1 : row.bar.value), 0) / rows.length;
}
