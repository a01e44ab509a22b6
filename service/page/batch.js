// The rows of a batch: name, progress and state of each video.

import { get } from "./api.js";
import { $, button, element, prose } from "./dom.js";
import { showProblem } from "./problem.js";
import { percent } from "./text.js";

export function showBatchRow(name) {
  const bar = element("progress", { max: 1, value: 0 });
  const row = { name: element("a", { textContent: name }), bar, text: element("span", { className: "muted small", textContent: "waiting" }), act: button("Cancel", null, "quiet"), ended: null };
  bar.setAttribute("aria-label", name);
  row.item = element("li", {}, row.name, bar, row.text, row.act);
  $("batch-rows").append(row.item);
  rows.push(row);
  summarize();
  return row;
}

const rows = [];

/** Show a change of a row: {text, fraction, ended} or {job}; `action`, [label, function], is what its button does. */
export function updateBatchRow(row, { job, action = null, ...change }) {
  const { text, fraction, ended = null } = job ? stateOf(job) : change;
  if (job?.id) row.name.href = `#/jobs/${job.id}`;
  if (text !== undefined) row.text.replaceChildren(prose(text));
  if (fraction !== undefined) row.bar.value = ended || fraction < 0.1 ? fraction : Math.max(row.bar.value, fraction);
  row.ended = ended;
  row.item.className = ended ?? "";
  row.act.hidden = !action;
  if (action) [row.act.textContent, row.act.onclick] = action;
  summarize();
}

/** What the button of a row does while its job has not ended. */
export const cancelAction = (job) => ["Cancel", () => get(job.links.cancel, { method: "POST" }).catch(showProblem)];

function stateOf(job) {
  if (job.status === "queued") return { text: job.waiting_for_worker ? "waiting for a worker" : job.position ? `queued, ${job.position} ahead` : "queued", fraction: 0.1 };
  if (job.status === "running") return { text: `${job.stage ?? "starting"}, ${percent(job.fraction)}`, fraction: 0.1 + 0.9 * job.fraction };
  if (job.status === "failed") return { text: `${job.error.title}: ${job.error.detail}`, ended: "failed" };
  return { text: job.status === "succeeded" ? "done" : job.status, fraction: 1, ended: job.status };
}

function summarize() {
  const ended = rows.filter((row) => row.ended).length;
  const failed = rows.filter((row) => row.ended === "failed").length;
  $("batch").hidden = !rows.length;
  $("batch-title").textContent = `${ended - failed} of ${rows.length} videos done${failed ? `, ${failed} failed` : ""}`;
  $("batch-bar").value = rows.reduce((sum, row) => sum + (row.ended ? 1 : row.bar.value), 0) / rows.length;
}
