// Whether a worker runs jobs: the light in the header, and what to do when there is none.

import { $ } from "/page/dom.js";
import { count } from "/page/text.js";

const INTERVAL_MS = 3000;
let latest = null; // the response of /readyz; null: the service does not respond
const listeners = new Set();

/** Whether a job that waits has no worker that would run it; false while this is unknown. */
export const noWorker = () => latest !== null && !latest.runs_jobs;

/** Call `listener` whenever the state has been read. */
export const onWorkers = (listener) => listeners.add(listener);

async function read() {
  try {
    latest = await (await fetch("/readyz")).json();
    show(latest.runs_jobs, latest.workers.length ? count(latest.workers.length, "worker") : "no worker", ...advice(latest));
  } catch {
    latest = null;
    show(false, "offline", "The service does not respond.", "Start it with `uvos up`; this page continues by itself.");
  }
  for (const listener of listeners) listener();
}

function advice({ ready, runs_jobs, workers, reasons }) {
  if (ready) return [];
  if (runs_jobs) return ["The service takes no jobs.", reasons.join("; ")];
  if (workers.length) return ["No worker is ready.", `${reasons.join("; ")}. Jobs wait until it is.`];
  return ["No worker is running.", "Jobs wait until one starts: `uvos up` starts the service with a worker, `uvos-worker run` starts another one."];
}

function show(isOn, label, title = "", text = "") {
  $("workers").classList.toggle("on", isOn);
  $("workers").textContent = label;
  $("service").hidden = !title;
  $("service").querySelector("strong").textContent = title;
  $("service").querySelector("span").textContent = text.replaceAll("`", "");
}

/** Read the state now and every three seconds. */
export function watchWorkers() {
  read();
  setInterval(read, INTERVAL_MS);
}
