// Elements of the page.

export const $ = (id) => document.getElementById(id);

/** A new element with properties and children; null children are left out. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Text with `code` spans. */
export function prose(text) {
  const parts = (text || "").split("`");
  return element("span", {}, ...parts.map((part, index) => (index % 2 ? element("code", { textContent: part }) : part)));
}

/** A button that calls `onclick`. */
export const button = (textContent, onclick, className = "") => element("button", { type: "button", textContent, onclick, className });

/** Copy a text; where the browser forbids it, as on a page without HTTPS, let the user copy it. */
export async function copy(text, control) {
  if (!navigator.clipboard) return prompt("Copy this text:", text);
  await navigator.clipboard.writeText(text);
  const label = control.textContent;
  control.textContent = "Copied";
  control.disabled = true;
  setTimeout(() => Object.assign(control, { textContent: label, disabled: false }), 1500);
}
