// The rounds of Algorithm 1 behind "Advanced": a slider from the first round that can be drawn to the result.

import { json } from "./api.js";
import { $ } from "./dom.js";
import { roundLayers } from "./layers.js";
import { linksOf } from "./levels.js";
import { showProblem } from "./problem.js";
import { count } from "./text.js";

/** Offer the rounds of a level; `onLayer` receives the layer of the chosen round, or the level itself. */
export function offerRounds(job, level, layer, onLayer, signal) {
  const link = linksOf(job, level).rounds;
  $("advanced").hidden = level.rounds.length < 2 || !link;
  $("advanced").ontoggle = () => {
    if ($("advanced").open) open().catch(showProblem);
    else onLayer(layer);
  };
  if ($("advanced").open) open().catch(showProblem);

  async function open() {
    $("round-name").textContent = "loading…";
    const layers = [...roundLayers(level, await json(link, { signal }), layer), layer];
    if (signal.aborted) return;
    Object.assign($("round"), { max: layers.length - 1, value: layers.length - 1, disabled: layers.length < 2 });
    const show = (chosen) => {
      const name = chosen === layer ? `result · ${count(layer.objects.length, "object")}` : `${chosen.title} · ${count(chosen.objects.length, "group")}`;
      $("round-name").textContent = layers.length < 2 ? "earlier rounds have too many groups to show" : name;
      $("round").setAttribute("aria-valuetext", name);
    };
    show(layer);
    $("round").oninput = ({ target }) => {
      const chosen = layers[Number(target.value)];
      show(chosen);
      onLayer(chosen);
    };
  }
}
