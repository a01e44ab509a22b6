// HTTP client of the page: requests with the API key, problems as errors, events that resume after a broken connection.

let key = sessionStorage.getItem("uvos-key");

export class Problem extends Error {
  constructor(problem) {
    super(problem.detail || problem.title);
    Object.assign(this, { title: problem.title || "Error", status: problem.status, type: problem.type, limit: problem.limit, errors: problem.errors || [] });
  }
}

export function useKey(value) {
  key = value;
  sessionStorage.setItem("uvos-key", value);
}

const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});
export const hasKey = () => Boolean(key);

const problemOf = (body, status) => new Problem(body ?? { title: "Rejected", status, detail: `the service responded with status ${status}` });

export async function get(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (!response.ok) throw problemOf(await response.json().catch(() => null), response.status);
  return response;
}

export const json = async (path, options) => (await get(path, options)).json();

/** An address that an image or video element can load: the path, or with an API key a copy of the file. */
export const address = async (path) => (key ? URL.createObjectURL(await (await get(path)).blob()) : path);

export function send(form, idempotencyKey, onProgress) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.open("POST", "/segment");
    request.responseType = "json";
    for (const [name, value] of Object.entries({ ...headers(), "Idempotency-Key": idempotencyKey })) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => (request.status === 202 ? resolve(request.response) : reject(problemOf(request.response, request.status)));
    request.onerror = () => reject(new Problem({ title: "No connection", status: 0, detail: "the connection to the service failed" }));
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    request.send(form);
  });
  return { done, abort: () => request.abort() };
}

/** Call `onJob` on every change of a job until it has ended; resumes after a broken connection. */
export async function follow(link, onJob, signal) {
  let last = null;
  for (let pause = 500; !signal.aborted; pause = Math.min(pause * 2, 8000)) {
    try {
      const response = await get(link, { signal, cache: "no-store", headers: last ? { "Last-Event-ID": last } : {} });
      if (response.status === 204) return;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
          const fields = Object.fromEntries(text.slice(0, end).split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
          if (fields.id) last = fields.id;
          if (!fields.data) continue;
          pause = 500;
          onJob(JSON.parse(fields.data));
          if (fields.event === "end") return;
        }
      }
    } catch (error) {
      if (signal.aborted || (error instanceof Problem && error.status < 500)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
