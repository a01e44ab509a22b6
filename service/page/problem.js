// The message box: a problem with its remedy, or a note; each with buttons that act on it.

import { hasKey, json, Problem } from "./api.js";
import { $, button, element, prose } from "./dom.js";

/** Show an error. `actions` are [label, function] pairs; the remedy of the problem type follows from the service. */
export async function showProblem(error, actions = []) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.status === 401) return askForKey();
  const known = error instanceof Problem;
  show("problem", known ? `${error.title.replace(/\.$/, "")}.` : "Error in the page.", error.message, actions);
  if (!known || !error.type?.startsWith("/problems/")) return;
  const shown = $("message").firstElementChild;
  const { remedy } = await json(error.type).catch(() => ({}));
  if (remedy && shown === $("message").firstElementChild) $("message-remedy").replaceChildren(prose(remedy));
}

/** Show a note, which is not an error. */
export const showNote = (title, text, actions = []) => show("note", title, text, actions);

export function hideMessage() {
  $("message").hidden = true;
}

function show(kind, title, text, actions) {
  const box = $("message");
  box.className = `problem ${kind}`;
  box.querySelector("strong").replaceWith(element("strong", { textContent: title }));
  $("message-text").replaceChildren(prose(text));
  $("message-remedy").replaceChildren();
  $("message-actions").replaceChildren(...actions.map(([label, act]) => button(label, () => (hideMessage(), act()))));
  box.hidden = false;
}

function askForKey() {
  $("key-error").textContent = hasKey() ? "The API key is unknown." : "";
  $("key").hidden = false;
  $("key").querySelector("input").focus();
}

$("message").querySelector("button").onclick = hideMessage;
