// Keyboard: space plays, arrows step through frames and levels, digits hide objects.

import { $ } from "./dom.js";
import { showProblem } from "./problem.js";
import { player, step } from "./result.js";

addEventListener("keydown", (event) => {
  if ($("result").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const { target, key } = event;
  if (target.matches("input:not([type=checkbox]), select, textarea") && !(target === $("scrub") && key === " ")) return;
  if (key === " " && target.matches("button, a, summary, input[type=checkbox]")) return;
  const frames = event.shiftKey ? 10 : 1;
  if (key === " ") player.toggle();
  else if (key === "ArrowLeft") player.seek(player.frame - frames);
  else if (key === "ArrowRight") player.seek(player.frame + frames);
  else if (key === "ArrowUp") step(1).catch(showProblem);
  else if (key === "ArrowDown") step(-1).catch(showProblem);
  else if (/^[1-9]$/.test(key)) $("legend").querySelectorAll(".swatch")[key - 1]?.click();
  else return;
  event.preventDefault();
});
