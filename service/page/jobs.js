// The list of jobs, newest first.

import { address, json } from "./api.js";
import { $, element } from "./dom.js";
import { showProblem } from "./problem.js";

/** Load the list; `cursor` continues it. */
export async function listJobs(cursor = "") {
  const page = await json(`/jobs?limit=20${cursor && `&cursor=${cursor}`}`);
  const rows = page.jobs.map(row);
  if (cursor) $("jobs").append(...rows);
  else $("jobs").replaceChildren(...rows);
  $("list").hidden = !$("jobs").children.length;
  $("older").hidden = !page.next;
  $("older").onclick = () => listJobs(page.next).catch(showProblem);
}

function row(job) {
  const created = new Date(job.created_at);
  const link = element("a", { href: `#/jobs/${job.id}` },
    element("span", { className: "thumbnail" }, job.links.thumbnail ? thumbnail(job.links.thumbnail) : null),
    element("b", { textContent: job.video.name }),
    element("span", { className: "muted small detail", textContent: `${job.params.model} · τ ${job.params.tau.join(", ")}` }),
    element("span", { className: `pill ${job.status}`, textContent: job.status }),
    element("time", { className: "muted small", dateTime: job.created_at, textContent: created.toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) }));
  if (location.hash.endsWith(job.id)) link.setAttribute("aria-current", "page");
  return element("li", {}, link);
}

function thumbnail(link) {
  const image = element("img", { alt: "", loading: "lazy" });
  address(link).then((src) => (image.src = src)).catch(() => image.remove());
  return image;
}
