// A request as code: curl, Python, JavaScript.

const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const literal = (text) => JSON.stringify(String(text));

/**
 * Code that sends a request.
 *
 * @param request {method, url, headers, fields, file, body}: `fields` are [name, value] of a multipart form, `file` is
 *   the name of its video, `body` is a JSON text; each may be empty
 * @param answer media type of the response
 * @returns {curl, Python, JavaScript}
 */
export const samples = (request, answer) => ({ curl: curl(request, answer), Python: python(request, answer), JavaScript: javascript(request, answer) });

const isText = (type) => !type || /json|xml|text/.test(type);
const fileName = (url) => new URL(url).pathname.split("/").pop();

function curl({ method, url, headers, fields, file, body }, answer) {
  const output = isText(answer) ? [] : [`-o ${fileName(url)}`];
  const verb = method === "GET" || (method === "POST" && file) ? [] : [`-X ${method}`];
  const lines = [...verb, ...output, ...headers.map(([name, value]) => `-H ${quote(`${name}: ${value}`)}`)];
  if (file) lines.push(`-F ${quote(`video=@${file}`)}`);
  lines.push(...fields.map(([name, value]) => `-F ${quote(`${name}=${value}`)}`));
  if (body) lines.push(`-d ${quote(body)}`);
  return ["curl -sS", ...lines, quote(url)].join(" \\\n  ");
}

function python({ method, url, headers, fields, file, body }, answer) {
  const options = [];
  if (headers.length) options.push(`headers={${headers.map(([name, value]) => `${literal(name)}: ${literal(value)}`).join(", ")}}`);
  if (fields.length) {
    const names = [...new Set(fields.map(([name]) => name))];
    options.push(`data={${names.map((name) => `${literal(name)}: [${fields.filter(([other]) => other === name).map(([, value]) => literal(value)).join(", ")}]`).join(", ")}}`);
  }
  if (file) options.push(`files={"video": open(${literal(file)}, "rb")}`);
  if (body) options.push(`content=${literal(body)}`);
  const use = isText(answer) ? `print(response.${answer?.includes("json") ? "json()" : "text"})` : `open(${literal(fileName(url))}, "wb").write(response.content)`;
  return `import httpx\n\nresponse = httpx.request(\n    ${[literal(method), literal(url), ...options].join(",\n    ")},\n    timeout=60,\n)\nresponse.raise_for_status()\n${use}`;
}

function javascript({ method, url, headers, fields, file, body }, answer) {
  const lines = [];
  if (file) {
    lines.push("const form = new FormData();", `form.append("video", file); // a File, ${file}`);
    lines.push(...fields.map(([name, value]) => `form.append(${literal(name)}, ${literal(value)});`));
  }
  const options = [`method: ${literal(method)}`];
  if (headers.length) options.push(`headers: {${headers.map(([name, value]) => `${literal(name)}: ${literal(value)}`).join(", ")}}`);
  if (file) options.push("body: form");
  if (body) options.push(`body: ${literal(body)}`);
  lines.push(`const response = await fetch(${literal(url)}, {${options.join(", ")}});`, "if (!response.ok) throw new Error((await response.json()).detail);");
  lines.push(`console.log(await response.${isText(answer) ? (answer?.includes("json") ? "json" : "text") : "blob"}());`);
  return lines.join("\n");
}
