// Numbers in words.

const UNKNOWN_ABOVE = 8; // ratio of the bounds of an estimate that says nothing

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
  const { low, high } = estimate, median = estimate.median ?? Math.sqrt(low * high);
  if (high <= 3) return "a few seconds left";
  if (high > UNKNOWN_ABOVE * Math.max(low, 1)) return "estimating…";
  const [from, to] = [seconds(low), seconds(high)];
  return `about ${seconds(median)} left${from === to ? "" : ` (${from} to ${to})`}`;
}
