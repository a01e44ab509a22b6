// What to change so that a job that failed succeeds: per problem type, parameters that one click applies.

const SLOW_FPS = 10; // frames a second that show most motion
const MIN_KEY_RATIO = 0.02;

const fewerFrames = ({ params }) => {
  const fps = Math.min(SLOW_FPS, (params.fps ?? 2 * SLOW_FPS) / 2);
  return [{ label: `Use ${fps} frames a second (fps=${fps})`, changes: { fps } }];
};

const fewerKeys = ({ params }) => {
  const keyRatio = Math.max(MIN_KEY_RATIO, Number((params.key_ratio / 2).toFixed(2)));
  return keyRatio < params.key_ratio ? [{ label: `Use fewer key frames (key_ratio=${keyRatio})`, changes: { key_ratio: keyRatio } }] : [];
};

const firstSeconds = ({ params, limit }) => {
  const end = Number(((params.start ?? 0) + limit).toFixed(3));
  return [{ label: `Use the first ${limit} s (end=${end})`, changes: { end } }];
};

const again = () => [{ label: "Try again", changes: {} }];
const otherModel = ({ model }) => (model ? [{ label: `Use the model ${model}`, changes: { model } }] : []);

const REMEDIES = {
  "too-long": firstSeconds,
  "too-many-frames": fewerFrames,
  "deadline-exceeded": (problem) => [...fewerFrames(problem), ...fewerKeys(problem)],
  "out-of-memory-budget": (problem) => [...fewerKeys(problem), ...fewerFrames(problem)],
  "no-frames": () => [{ label: "Use the whole video", changes: { start: "", end: "" } }],
  "weights-unavailable": otherModel,
  "weights-invalid": otherModel,
  "unknown-model": otherModel,
  "queue-full": again,
  "queue-unavailable": again,
  "storage-unavailable": again,
  "too-many-jobs": again,
  "too-many-attempts": again,
  "request-too-slow": again,
};

/** Changes that may resolve a problem, as [{label, changes}]; `changes` are form fields, `model` is one that can run. */
export function remedies(problem, { params = {}, model = null }) {
  const [, end] = /`end=([\d.]+)`/.exec(problem.detail ?? problem.message ?? "") ?? [];
  if (end) return [{ label: `Use the part before (end=${Number(end)})`, changes: { end: Number(end) } }];
  const name = (problem.type ?? "").split("/").pop();
  if (problem.status === 0) return again();
  return REMEDIES[name]?.({ params, limit: problem.limit, model }) ?? [];
}
