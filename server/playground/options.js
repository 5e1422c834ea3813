/** From the form to the fields of a request: what is left empty is left out, so the server's defaults hold. */

const NUMBERS = [
  "temperature", "top_p", "max_tokens", "seed", "top_k", "min_p",
  "presence_penalty", "frequency_penalty", "repetition_penalty",
];

// Seeds that JavaScript holds exactly; long enough not to meet one twice.
const SEEDS = 2 ** 32;

/**
 * @param {FormData} form
 * @returns {{fields: Record<string, number>, speculation: Record<string, unknown>}}
 */
export function fieldsOf(form) {
  /** @type {Record<string, number>} */
  const fields = {};
  for (const name of NUMBERS) {
    const value = String(form.get(name) ?? "").trim();
    if (value !== "") fields[name] = Number(value);
  }
  // chosen here, so that the same answer can be asked for again
  fields.seed ??= crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS;
  /** @type {Record<string, unknown>} */
  const speculation = { mode: form.get("mode"), detail: true };
  const nodes = String(form.get("max_nodes") ?? "").trim();
  if (nodes !== "") speculation.max_nodes = Number(nodes);
  if (form.get("acceptance")) speculation.acceptance = form.get("acceptance");
  return { fields, speculation };
}

/**
 * The request of a chat's next answer.
 * @param {string} model
 * @param {FormData} form
 * @param {{role: string, content: string}[]} conversation
 * @returns {{path: string, body: any}}
 */
export function chatRequest(model, form, conversation) {
  const { fields, speculation } = fieldsOf(form);
  const system = String(form.get("system") ?? "").trim();
  const messages = [...(system === "" ? [] : [{ role: "system", content: system }]), ...conversation];
  return { path: "v1/chat/completions", body: { model, messages, ...fields, speculation } };
}

/**
 * @param {string} model
 * @param {FormData} form
 * @param {string} prompt
 * @returns {{path: string, body: any}}
 */
export function completionRequest(model, form, prompt) {
  const { fields, speculation } = fieldsOf(form);
  return { path: "v1/completions", body: { model, prompt, ...fields, speculation } };
}
