// Numbers in words.

export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

export const bytes = (size) => (size < 1e6 ? `${Math.ceil(size / 1e3)} kB` : `${(size / 1e6).toFixed(1)} MB`);

export const percent = (share) => `${Math.round(100 * share)} %`;

/** Seconds in a unit of their size, rounded as a person would. */
export function seconds(value) {
  if (value < 90) return `${Math.max(1, Math.round(value))} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** The remaining time of a job: the median, and the range where it is wider than a rounding. */
export function remaining(estimate) {
  if (!estimate) return "estimating…";
  const [from, median, to] = [estimate.low, estimate.median, estimate.high].map(seconds);
  return `about ${median} left${from === to ? "" : ` (${from} to ${to})`}`;
}
