// The official Node client against running servers. Required, not imported: only `require` looks into NODE_PATH.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const OpenAI = require("openai").OpenAI;

const { DEMO_URL, FAKE_URL, STRICT_URL, STRICT_KEY, ENDLESS_SEED } = process.env;
const QUESTION = [{ role: "user", content: "What does textwrap.dedent do?" }];

function connect(url, apiKey = "none needed") {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 60_000 });
}

const demo = connect(DEMO_URL);
const fake = connect(FAKE_URL);

async function read(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function rejection(promise) {
  return promise.then(
    () => assert.fail("it was answered"),
    (error) => error,
  );
}

// The sum over the samples of a metric that carry a label.
async function metric(url, name, label) {
  const text = await (await fetch(`${url}/metrics`)).text();
  const lines = text.split("\n").filter((line) => line.startsWith(`${name}{`) && line.includes(label));
  return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

async function cancelledRisesAbove(url, before) {
  for (const deadline = Date.now() + 20_000; Date.now() < deadline; ) {
    if ((await metric(url, "medusa_requests_cancelled_total", 'stage="decode"')) > before) return;
  }
  assert.fail("the server never noticed that its client had gone");
}

test("models.list pages over the served model", async () => {
  const ids = [];
  for await (const model of demo.models.list()) ids.push(model.id);
  const one = await demo.models.retrieve("demo");

  assert.deepEqual(ids, ["demo"]);
  assert.equal(one.object, "model");
});

test("a chat is answered", async () => {
  const answer = await demo.chat.completions.create({ model: "demo", messages: QUESTION });
  const [choice] = answer.choices;

  assert.match(answer.id, /^chatcmpl-/);
  assert.match(choice.message.content, /whitespace/);
  assert.equal(choice.message.role, "assistant");
  assert.equal(choice.message.refusal, null);
  assert.equal(choice.finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.ok(answer._request_id);
});

test("a stream spells the whole answer and ends with its usage", async () => {
  const asked = { model: "demo", messages: QUESTION };
  const whole = await demo.chat.completions.create(asked);
  const chunks = await read(
    await demo.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } }),
  );
  const usage = chunks.pop();

  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), whole.choices[0].message.content);
  assert.deepEqual(new Set(chunks.map((chunk) => chunk.id)).size, 1);
  assert.deepEqual(usage.choices, []);
  assert.equal(usage.usage.completion_tokens, whole.usage.completion_tokens);
});

test("the stream helper gathers the message and its events", async () => {
  const pieces = [];
  const runner = demo.chat.completions.stream({ model: "demo", messages: QUESTION, n: 1 });
  runner.on("content", (delta) => pieces.push(delta));
  const message = (await runner.finalChatCompletion()).choices[0].message;

  assert.equal(message.role, "assistant");
  assert.equal(pieces.join(""), message.content);
  assert.match(message.content, /whitespace/);
});

test("two answers come by index, streamed as well", async () => {
  const asked = { model: "demo", messages: QUESTION, n: 2, temperature: 1.5, seed: 7, max_completion_tokens: 24 };
  const whole = await demo.chat.completions.create(asked);
  const texts = ["", ""];
  for (const chunk of await read(await demo.chat.completions.create({ ...asked, stream: true })))
    for (const choice of chunk.choices) texts[choice.index] += choice.delta.content ?? "";

  assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1]);
  assert.deepEqual(texts, whole.choices.map((choice) => choice.message.content));
  assert.notEqual(texts[0], texts[1]);
});

test("the bytes of the log-probabilities spell the answer", async () => {
  const answer = await demo.chat.completions.create({
    model: "demo", messages: QUESTION, logprobs: true, top_logprobs: 3, max_tokens: 20, temperature: 0,
  });
  const [choice] = answer.choices;
  const entries = choice.logprobs.content;

  assert.equal(Buffer.from(entries.flatMap((entry) => entry.bytes)).toString(), choice.message.content);
  assert.equal(entries.length, answer.usage.completion_tokens);
  for (const entry of entries) {
    assert.equal(entry.top_logprobs.length, 3);
    assert.equal(entry.top_logprobs[0].token, entry.token); // greedy
    assert.ok(entry.logprob <= 0);
  }
});

test("a list of prompts is completed, each echoed", async () => {
  const prompt = ["import os\n", "def read("];
  const answer = await demo.completions.create({ model: "demo", prompt, max_tokens: 5, echo: true });

  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  answer.choices.forEach((choice, index) => assert.ok(choice.text.startsWith(prompt[index])));
});

test("a streamed completion spells the whole one", async () => {
  const asked = { model: "demo", prompt: "def read(", max_tokens: 20 };
  const whole = await demo.completions.create(asked);
  const chunks = await read(await demo.completions.create({ ...asked, stream: true }));

  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), whole.choices[0].text);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
});

test("a wrong value is a BadRequestError that names the field", async () => {
  const error = await rejection(demo.chat.completions.create({ model: "demo", messages: QUESTION, temperature: 9 }));

  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "temperature");
  assert.equal(error.type, "invalid_request_error");
  assert.ok(error.requestID);
});

test("a prompt that is too long is a BadRequestError of its own code", async () => {
  const error = await rejection(demo.completions.create({ model: "demo", prompt: "word ".repeat(9000) }));

  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.code, "context_length_exceeded");
  assert.equal(error.param, "prompt");
});

test("an unknown model is a NotFoundError", async () => {
  const asked = rejection(demo.chat.completions.create({ model: "gpt-5", messages: QUESTION }));
  for (const error of [await asked, await rejection(demo.models.retrieve("org/other"))]) {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
  }
});

test("a wrong key is an AuthenticationError", async () => {
  const error = await rejection(connect(STRICT_URL, "wrong").models.list());

  assert.ok(error instanceof OpenAI.AuthenticationError);
  assert.equal(error.code, "invalid_api_key");
});

test("a full queue is a RateLimitError that says when to come back", async () => {
  const strict = connect(STRICT_URL, STRICT_KEY);
  const long = await strict.completions.create({
    model: "fake", prompt: "Hello", max_tokens: 390, seed: Number(ENDLESS_SEED), stream: true,
  });
  const chunks = long[Symbol.asyncIterator]();
  await chunks.next();
  const error = await rejection(strict.completions.create({ model: "fake", prompt: "Hello" }));
  long.controller.abort();

  assert.ok(error instanceof OpenAI.RateLimitError);
  assert.equal(error.code, "queue_full");
  assert.ok(Number(error.headers.get("retry-after")) > 0);
});

test("an abort in mid-stream frees the server", async () => {
  const before = await metric(DEMO_URL, "medusa_requests_cancelled_total", 'stage="decode"');
  const controller = new AbortController();
  const asked = { model: "demo", prompt: "import", max_tokens: 2000, stream: true, ignore_eos: true };
  const stream = await demo.completions.create(asked, { signal: controller.signal });
  let heard = 0;
  for await (const _ of stream) if (++heard === 2) controller.abort();
  await cancelledRisesAbove(DEMO_URL, before);
  const next = await demo.completions.create({ model: "demo", prompt: "import", max_tokens: 1 });

  assert.equal(next.usage.completion_tokens, 1);
});

test("leaving the loop frees the server", async () => {
  const before = await metric(DEMO_URL, "medusa_requests_cancelled_total", 'stage="decode"');
  const asked = { model: "demo", prompt: "import", max_tokens: 2000, stream: true, ignore_eos: true };
  for await (const chunk of await demo.completions.create(asked)) {
    assert.equal(chunk.object, "text_completion");
    break;
  }

  await cancelledRisesAbove(DEMO_URL, before);
});

test("an error in mid-stream is thrown to the reader", async () => {
  const asked = { model: "fake", prompt: "Hello world", seed: Number(process.env.FAILING_SEED), stream: true };
  const error = await rejection(fake.completions.create(asked).then(read));

  assert.ok(error instanceof OpenAI.APIError);
  assert.equal(error.type, "server_error");
});

test("characters of several bytes come whole", async () => {
  const content = "Grüße aus Köln 🙂🚀 日本語";
  const chunks = await read(
    await fake.chat.completions.create({ model: "fake", messages: [{ role: "user", content }], stream: true }),
  );
  const pieces = chunks.map((chunk) => chunk.choices[0].delta.content ?? "");

  assert.ok(pieces.join("").includes(content));
  assert.ok(!pieces.join("").includes("\ufffd"));
});
