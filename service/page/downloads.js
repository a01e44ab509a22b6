// Downloads of a level, and the command that submits the same job.

import { get, hasKey } from "./api.js";
import { $, element } from "./dom.js";
import { showProblem } from "./problem.js";

const LABELS = {
  masks_zip: "PNG masks", rle: "RLE JSON", overlay: "Overlay MP4", cutout_webm: "Cut-out WebM", cutout_mov: "Cut-out ProRes", preview_gif: "Preview GIF",
  coco: "COCO", youtube_vis: "YouTube-VIS", cvat: "CVAT video", cvat_images: "CVAT images", label_studio: "Label Studio", yolo: "YOLO", mots: "MOTS",
  frames: "Frames and masks",
};
const NOT_FILES = ["tau", "mask", "rounds", "objects"]; // entries of the links of a level that are not downloads

const stem = (name) => name.replace(/\.[a-z0-9]{1,5}$/i, "");

/** Show the downloads of the level at `tau`; edited levels are downloaded as edited. */
export function showDownloads(job, tau, isEdited) {
  const level = job.links.levels.find((item) => item.tau === tau);
  const several = job.links.levels.length > 1;
  $("of-level").textContent = [several && `of τ ${Number(tau.toPrecision(6))}`, isEdited && "as edited"].filter(Boolean).join(", ");
  const formats = [...Object.keys(LABELS), ...Object.keys(level).filter((name) => !(name in LABELS) && !NOT_FILES.includes(name))];
  const files = formats.filter((format) => level[format]).map((format) => [LABELS[format] ?? format.replaceAll("_", " "), level[format]]);
  if (job.links.source) files.push(["Source MP4", job.links.source]);
  files.push(["Manifest", job.links.manifest]);
  $("downloads").replaceChildren(...files.map(([label, href]) => {
    const file = href.split("/").pop().replace(/\?.*/, "");
    const name = `${stem(job.video.name)}${several && href.includes("?") ? `-tau${tau}` : ""}-${file}`;
    const link = element("a", { textContent: label, href, download: name });
    if (hasKey()) link.onclick = (event) => {
      event.preventDefault();
      save(href, name).catch(showProblem);
    };
    return link;
  }));
}

async function save(href, name) {
  const link = element("a", { href: URL.createObjectURL(await (await get(href)).blob()), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000); // the browser may read it only after the user has chosen a folder
}

/** The curl command that submits the same job. */
export function showCommand(job) {
  const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const fields = Object.entries(job.params).flatMap(([name, value]) => [value].flat().map((item) => `-F ${quote(`${name}=${item}`)}`));
  const auth = hasKey() ? ['-H "Authorization: Bearer $UVOS_API_KEY"'] : [];
  $("curl").textContent = ["curl", ...auth, `-F ${quote(`video=@${job.video.name}`)}`, ...fields, `${location.origin}/segment`].join(" \\\n  ");
}
