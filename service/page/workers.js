// Whether a worker runs jobs: the light in the header, and what to do when there is none.

import { $ } from "./dom.js";
import { count } from "./text.js";

const INTERVAL_MS = 3000;

async function read() {
  try {
    const state = await (await fetch("/readyz")).json();
    show(state.runs_jobs, state.workers.length ? count(state.workers.length, "worker") : "no worker", ...advice(state));
  } catch {
    show(false, "offline", "The service does not respond.", "Start it with `uvos up`; this page continues by itself.");
  }
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
