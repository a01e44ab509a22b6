// The page: submit a video, follow the job, show its result. Each view has a URL: #/ and #/jobs/<id>.

import { follow, get, hasKey, json, Problem, send, useKey } from "/page/api.js";
import { colorLayers, LevelLayer, roundLayers } from "/page/layers.js";
import { Player } from "/page/player.js";

const $ = (id) => document.getElementById(id);
const SAMPLE = "/page/sample.mp4";
const LEGEND_ROWS = 24;
const STAGES = ["decode", "features", "attention", "clustering", "masks"];
const files = new Map(); // job id -> URL of its video, while the page is open
let models = null;
let sample = null; // {size}, if the service has a sample
let current = new AbortController(); // aborts the requests of the previous view
let layers = [];
let chosen = 0;
let fraction = 0;
let onLevel = () => {}; // called when the level changes

const player = new Player({ video: $("video"), canvas: $("canvas"), onFrame: showFrame });

// --- views

async function route() {
  current.abort();
  current = new AbortController();
  player.pause();
  $("problem").hidden = true;
  for (const id of ["start", "work", "result"]) $(id).hidden = true;
  const [, id] = location.hash.match(/^#\/jobs\/([0-9a-z]+)$/) || [];
  try {
    if (id) await showJob(id, current.signal);
    else $("start").hidden = false;
    await listJobs();
  } catch (error) {
    showProblem(error);
  }
}

function showProblem(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.status === 401) {
    $("key-error").textContent = hasKey() ? "The API key is unknown." : "";
    $("key").hidden = false;
    if (location.hash.length < 3) $("start").hidden = false;
    return $("key").querySelector("input").focus();
  }
  $("problem").querySelector("strong").textContent = error instanceof Problem ? `${error.title}.` : "Error in the page.";
  $("problem").querySelector("span").textContent = error.message;
  $("problem").hidden = false;
  if (location.hash.length < 3) $("start").hidden = false;
}

// --- start

async function prepare() {
  try {
    models = await json("/models");
    const select = $("options").elements.model;
    select.replaceChildren(...models.models.map((model) => new Option(model.name, model.name, false, model.name === models.default)));
    for (const option of select.options) option.title = models.models.find((model) => model.name === option.value).description;
    suggestLevels();
  } catch (error) {
    showProblem(error);
  }
  const response = await fetch(SAMPLE, { method: "HEAD" });
  if (response.ok) {
    sample = { size: Number(response.headers.get("content-length")) };
    $("sample").hidden = false;
  }
}

/** Suggest the default tau of the model, a smaller and a larger one. */
function suggestLevels() {
  const form = $("options").elements;
  const model = models.models.find((item) => item.name === form.model.value);
  const tau = model.tau[form.mode.value] ?? 1;
  form.tau.value = [tau, tau * 0.5, tau * 2.5].map((value) => Number(value.toPrecision(2))).join(", ");
  summarize();
}

function summarize() {
  const form = $("options").elements;
  form.key_ratio.nextElementSibling.value = `${Math.round(form.key_ratio.value * 100)} %`;
  $("summary").textContent = `${form.model.value} · τ ${form.tau.value}`;
}

function formOf(file, name) {
  const form = new FormData($("options"));
  const taus = form.get("tau").split(/[,;\s]+/).filter(Boolean);
  form.delete("tau");
  for (const tau of taus) form.append("tau", tau);
  for (const field of ["start", "end", "motion"]) if (!form.get(field)) form.delete(field);
  if (!form.has("format")) form.append("format", "rle");
  form.append("video", file, name);
  return form;
}

async function begin(file, name) {
  current.abort();
  current = new AbortController();
  $("start").hidden = true;
  $("problem").hidden = true;
  $("work").hidden = false;
  $("work-title").textContent = name;
  fraction = 0;
  showStages(null);
  const sending = send(formOf(file, name), crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`, (share) => {
    $("bar").value = share;
    $("where").textContent = share < 1 ? `uploading, ${Math.round(share * 100)} % of ${bytes(file.size)}` : "submitting";
  });
  $("left").textContent = "";
  $("cancel").onclick = () => sending.abort();
  try {
    const job = await sending.done;
    files.set(job.id, URL.createObjectURL(file));
    location.hash = `#/jobs/${job.id}`;
  } catch (error) {
    $("work").hidden = true;
    $("start").hidden = false;
    showProblem(error);
  }
}

// --- a queued or running job

async function showJob(id, signal) {
  let job = await json(`/jobs/${id}`, { signal });
  fraction = 0;
  $("work-title").textContent = job.video.name;
  if (job.status === "queued" || job.status === "running") {
    $("work").hidden = false;
    $("cancel").onclick = async () => {
      $("cancel").disabled = true;
      try {
        await get(job.links.cancel, { method: "POST" });
      } catch (error) {
        showProblem(error);
      }
    };
    $("cancel").disabled = false;
    showProgress(job);
    follow(job.links.events, (latest) => showProgress((job = latest)), signal)
      .then(() => !signal.aborted && route())
      .catch(showProblem);
    return;
  }
  if (job.status === "succeeded") return showResult(job, signal);
  $("start").hidden = false;
  showProblem(new Problem(job.error || { title: "Canceled", detail: `${job.video.name} was canceled` }));
}

function showProgress(job) {
  fraction = Math.max(fraction, job.fraction); // the bar never moves backwards
  $("bar").value = fraction;
  document.title = `${Math.round(fraction * 100)} % · ${job.video.name}`;
  showStages(job.stage);
  if (job.status === "queued") $("where").textContent = job.position ? `queued, ${job.position} ahead` : "queued, next in line";
  else if (job.stage) $("where").textContent = job.frames_total ? `${job.stage}: frame ${job.frames_done} of ${job.frames_total}` : job.stage;
  $("left").textContent = job.eta_s ? `${duration(job.eta_s)} left` : "";
}

function showStages(stage) {
  const now = STAGES.indexOf(stage);
  [...$("stages").children].forEach((item, index) => (item.className = index < now ? "done" : index === now ? "now" : ""));
}

function duration({ low, high }) {
  const text = (seconds) => (seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`);
  const [from, to] = [text(low), text(high)];
  return from === to ? `about ${to}` : low < 1 || high > 8 * low ? `up to ${to}` : `${from.split(" ")[1] === to.split(" ")[1] ? from.split(" ")[0] : from}–${to}`;
}

const bytes = (size) => (size < 1e6 ? `${Math.ceil(size / 1e3)} kB` : `${(size / 1e6).toFixed(1)} MB`);

// --- the result

async function showResult(job, signal) {
  $("result").hidden = false;
  $("loading").hidden = false;
  $("legend").replaceChildren();
  $("result-title").textContent = document.title = job.video.name;
  $("remove").onclick = async () => {
    if (!confirm(`Delete ${job.video.name} and its results?`)) return;
    await get(job.links.self, { method: "DELETE" }).catch(showProblem);
    location.hash = "#/";
  };
  const manifest = await json(job.links.manifest, { signal });
  const { video } = manifest;
  $("facts").textContent = `${video.width}×${video.height} · ${video.frame_count} frames · ${manifest.model.name} · ${(manifest.timings_s.total || 0).toFixed(1)} s`;
  $("warnings").textContent = manifest.warnings.join(" ");
  const isSample = sample && job.video.name === "sample" && job.video.bytes === sample.size;
  const src = files.get(job.id) || (isSample ? SAMPLE : null);
  player.open(video.pts_s, src);
  $("attach").hidden = Boolean(src);
  $("attach").querySelector("input").onchange = ({ target }) => attach(target.files[0], job);
  $("scrub").max = video.frame_count - 1;
  layers = [];
  offerOverlay(job);
  showDownloads(job);
  $("curl").textContent = command(job);
  await loadLayers(job, manifest, signal);
}

function attach(file, job) {
  if (!file) return;
  if (file.size !== job.video.bytes) return showProblem(new Problem({ title: "Different video", detail: `the video of this job has ${bytes(job.video.bytes)}, ${file.name} has ${bytes(file.size)}` }));
  files.set(job.id, URL.createObjectURL(file));
  $("attach").hidden = true;
  player.setVideo(files.get(job.id));
}

async function loadLayers(job, manifest, signal) {
  const isCurrent = () => !signal.aborted;
  const links = new Map(job.links.levels.map((level) => [level.tau, level]));
  const first = manifest.levels[0].tau;
  layers = [];
  for (const level of manifest.levels) {
    const link = links.get(level.tau);
    const layer = await LevelLayer.of(level, await json(link.rle, { signal }), isCurrent);
    if (!layer) return;
    layers.push(layer);
    if (layers.length === 1) { // show the first level while the others load
      player.setLayer(layer);
      $("loading").hidden = true;
      $("grain").hidden = true;
    }
    if (level.rounds.length > 1 && link.rounds) layers.push(...roundLayers(level, await json(link.rounds, { signal }), layer));
  }
  layers.sort((one, other) => one.tau - other.tau || (one.kind === "level") - (other.kind === "level"));
  chosen = layers.findIndex((layer) => layer.kind === "level" && layer.tau === first);
  colorLayers(layers, chosen);
  $("level").max = layers.length - 1;
  $("grain").hidden = layers.length < 2;
  $("ticks").replaceChildren(...layers.map((layer) => Object.assign(document.createElement("i"), { className: layer.kind })));
  onLevel = () => showDownloads(job);
  choose(chosen);
}

function choose(index) {
  chosen = Math.max(0, Math.min(layers.length - 1, index));
  const layer = layers[chosen];
  const count = layer.objects.length;
  $("level").value = chosen;
  $("level-name").textContent = `${layer.title} · ${count} ${layer.kind === "level" ? (count === 1 ? "object" : "objects") : "groups"}`;
  $("level").setAttribute("aria-valuetext", $("level-name").textContent);
  player.hidden.clear();
  player.lit = null;
  player.setLayer(layer);
  showLegend(layer);
  onLevel();
}

// --- legend

function showLegend(layer) {
  const ranked = layer.kind === "level" ? layer.objects : [...layer.objects].sort((one, other) => mean(other.areas) - mean(one.areas));
  const shown = ranked.slice(0, LEGEND_ROWS);
  $("more").textContent = ranked.length > shown.length ? `and ${ranked.length - shown.length} more` : ranked.length ? "" : "No objects at this level.";
  $("legend").replaceChildren(...shown.map((object, index) => legendRow(object, index, layer.kind === "level" ? `Object ${object.id}` : `Group ${object.id}`)));
  requestAnimationFrame(() => shown.forEach((object, index) => plot($("legend").children[index].querySelector("canvas"), object)));
}

const mean = (areas) => areas.reduce((sum, value) => sum + value, 0) / areas.length;

function legendRow(object, index, title) {
  const row = document.createElement("li");
  const button = document.createElement("button");
  const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
  swatch.style.background = swatch.style.borderColor = object.color;
  const name = Object.assign(document.createElement("span"), { textContent: title });
  const span = Object.assign(document.createElement("span"), { className: "muted small", textContent: `${clock(object.first)}–${clock(object.last)} s` });
  const plotted = Object.assign(document.createElement("span"), { className: "plot" });
  plotted.append(document.createElement("canvas"));
  button.type = "button";
  button.title = index < 9 ? `Click or press ${index + 1} to hide` : "Click to hide";
  button.setAttribute("aria-pressed", "true");
  button.setAttribute("aria-label", `${title}, visible from ${clock(object.first)} to ${clock(object.last)} seconds, ${(100 * Math.max(...object.areas)).toFixed(1)} % of the frame at most`);
  button.append(swatch, name, span, plotted);
  button.onclick = () => {
    const hide = !player.hidden.has(object.id);
    player.hidden[hide ? "add" : "delete"](object.id);
    button.setAttribute("aria-pressed", String(!hide));
    player.redraw();
  };
  const light = (id) => () => {
    player.lit = id;
    player.redraw();
  };
  button.onpointerenter = button.onfocus = light(object.id);
  button.onpointerleave = button.onblur = light(null);
  row.append(button);
  return row;
}

const clock = (frame) => player.times[frame].toFixed(1);

/** Plot the area over time and the span of frames that contain the object. */
function plot(canvas, object) {
  const scale = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight, context = canvas.getContext("2d");
  canvas.width = width * scale;
  canvas.height = height * scale;
  context.scale(scale, scale);
  const areas = object.areas, peak = Math.max(...areas) || 1, x = (frame) => (frame / Math.max(1, areas.length)) * width;
  context.fillStyle = object.color;
  context.globalAlpha = 0.25;
  context.fillRect(x(object.first), height - 3, Math.max(2, x(object.last + 1) - x(object.first)), 3);
  context.globalAlpha = 0.85;
  context.beginPath();
  context.moveTo(0, height);
  areas.forEach((value, frame) => {
    const y = height - 2 - (value / peak) * (height - 4);
    context.lineTo(x(frame), value ? y : height);
    context.lineTo(x(frame + 1), value ? y : height);
  });
  context.lineTo(width, height);
  context.fill();
}

function showFrame(frame) {
  $("scrub").value = frame;
  $("scrub").setAttribute("aria-valuetext", `frame ${frame} of ${player.times.length}`);
  $("clock").textContent = `${player.times[frame].toFixed(2)} s · ${frame}/${player.times.length - 1}`;
  $("legend").style.setProperty("--at", (frame + 0.5) / player.times.length);
  $("play").classList.toggle("playing", player.playing);
  $("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
}

// --- downloads, the command, the list

function showDownloads(job) {
  const level = job.links.levels.find((item) => item.tau === (layers[chosen]?.tau ?? item.tau));
  const several = job.links.levels.length > 1;
  $("of-level").textContent = several ? `of τ ${Number(level.tau.toPrecision(6))}` : "";
  const formats = {
    masks_zip: "PNG masks", rle: "RLE JSON", overlay: "Overlay MP4", coco: "COCO", youtube_vis: "YouTube-VIS",
    cvat: "CVAT video", cvat_images: "CVAT images", label_studio: "Label Studio", yolo: "YOLO", mots: "MOTS",
  };
  const downloads = Object.entries(formats).filter(([format]) => level[format]).map(([format, label]) => {
    const file = level[format].split("/").pop().replace(/\?.*/, "");
    return [label, level[format], `${job.video.name}${several ? `-tau${level.tau}` : ""}-${file}`];
  });
  downloads.push(["Manifest", job.links.manifest, `${job.video.name}-manifest.json`]);
  $("downloads").replaceChildren(...downloads.map(([label, href, name]) => {
    const link = Object.assign(document.createElement("a"), { textContent: label, href, download: name });
    if (hasKey()) link.onclick = (event) => {
      event.preventDefault();
      save(href, name).catch(showProblem);
    };
    return link;
  }));
}

function offerOverlay(job) {
  $("overlay-label").hidden = !job.links.levels[0].overlay;
  $("overlay").checked = false;
  $("canvas").hidden = false;
  $("overlay").onchange = async ({ target }) => {
    if (!target.checked) {
      $("attach").hidden = files.has(job.id);
      $("canvas").hidden = false;
      return player.setVideo(files.get(job.id) || null);
    }
    const href = job.links.levels.find((level) => level.tau === layers[chosen].tau).overlay;
    $("attach").hidden = $("canvas").hidden = true;
    player.setVideo(hasKey() ? URL.createObjectURL(await (await get(href)).blob()) : href);
  };
}

async function save(href, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await (await get(href)).blob()), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000); // the browser may read it only after the user has chosen a folder
}

/** The curl command that submits the same job. */
function command(job) {
  const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const fields = Object.entries(job.params).flatMap(([name, value]) => [value].flat().map((item) => `-F ${quote(`${name}=${item}`)}`));
  const auth = hasKey() ? ['-H "Authorization: Bearer $UVOS_API_KEY"'] : [];
  return ["curl", ...auth, `-F ${quote(`video=@${job.video.name}.mp4`)}`, ...fields, `${location.origin}/segment`].join(" \\\n  ");
}

async function listJobs(cursor = "") {
  const page = await json(`/jobs?limit=20${cursor && `&cursor=${cursor}`}`);
  const rows = page.jobs.map((job) => {
    const row = document.createElement("li");
    const link = Object.assign(document.createElement("a"), { href: `#/jobs/${job.id}` });
    if (location.hash.endsWith(job.id)) link.setAttribute("aria-current", "page");
    const created = new Date(job.created_at);
    link.append(
      Object.assign(document.createElement("b"), { textContent: job.video.name }),
      Object.assign(document.createElement("span"), { className: `pill ${job.status}`, textContent: job.status }),
      Object.assign(document.createElement("time"), { className: "muted small", dateTime: job.created_at, textContent: created.toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) }),
    );
    row.append(link);
    return row;
  });
  if (cursor) $("jobs").append(...rows);
  else $("jobs").replaceChildren(...rows);
  $("list").hidden = !$("jobs").children.length;
  $("older").hidden = !page.next;
  $("older").onclick = () => listJobs(page.next).catch(showProblem);
}

async function showWorkers() {
  try {
    const { workers } = await (await fetch("/readyz")).json();
    $("workers").classList.toggle("on", workers.length > 0);
    $("workers").textContent = workers.length ? `${workers.length} ${workers.length === 1 ? "worker" : "workers"}` : "no worker";
  } catch {
    $("workers").classList.remove("on");
    $("workers").textContent = "offline";
  }
}

// --- user input

const takeFile = (file) => file && begin(file, file.name);
$("file").onchange = ({ target }) => takeFile(target.files[0]);
$("sample").onclick = async () => begin(await (await fetch(SAMPLE)).blob(), "sample.mp4").catch(showProblem);
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (!$("start").hidden || !$("result").hidden) takeFile(event.dataTransfer.files[0]);
});
$("options").onsubmit = (event) => event.preventDefault();
$("options").oninput = ({ target }) => (target.name === "model" || target.name === "mode" ? suggestLevels() : summarize());
$("play").onclick = () => player.toggle();
$("scrub").oninput = ({ target }) => player.seek(Number(target.value));
$("level").oninput = ({ target }) => choose(Number(target.value));
for (const [id, read] of [["opacity", (input) => Number(input.value)], ["outlines", (input) => input.checked], ["dim", (input) => input.checked]]) {
  $(id).oninput = ({ target }) => {
    player[id] = read(target);
    player.redraw();
  };
}
$("all").onclick = () => choose(chosen);
$("copy").onclick = async () => {
  await navigator.clipboard.writeText($("curl").textContent);
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
};
$("key").onsubmit = (event) => {
  event.preventDefault();
  useKey(new FormData(event.target).get("key"));
  event.target.hidden = true;
  prepare().then(route);
};
$("problem").querySelector("button").onclick = () => ($("problem").hidden = true);
addEventListener("keydown", (event) => {
  if ($("result").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const { target, key } = event;
  if (target.matches("input:not([type=checkbox]), select, textarea") && !(target === $("scrub") && key === " ")) return;
  if (key === " " && target.matches("button, a, summary, input[type=checkbox]")) return;
  const step = event.shiftKey ? 10 : 1;
  if (key === " ") player.toggle();
  else if (key === "ArrowLeft") player.seek(player.frame - step);
  else if (key === "ArrowRight") player.seek(player.frame + step);
  else if (key === "ArrowUp") choose(chosen + 1);
  else if (key === "ArrowDown") choose(chosen - 1);
  else if (/^[1-9]$/.test(key)) $("legend").querySelectorAll("button")[key - 1]?.click();
  else return;
  event.preventDefault();
});
addEventListener("hashchange", route);

showWorkers();
setInterval(showWorkers, 10000);
prepare().then(route);
