// Answers that must match a schema, and calls of functions, through the official Node client.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const OpenAI = require("openai").OpenAI;

const demo = new OpenAI({ baseURL: `${process.env.DEMO_URL}/v1`, apiKey: "none needed", maxRetries: 0, timeout: 60_000 });
const QUESTION = [{ role: "user", content: "What does textwrap.dedent do?" }];

// Nothing the small model could go on with for ever.
const PARAMETERS = {
  type: "object",
  properties: {
    kind: { type: "string", enum: ["module", "class", "function"] },
    mood: { type: "string", enum: ["🙂", "Grüße"] },
    certain: { type: "boolean" },
  },
  required: ["kind", "mood", "certain"],
  additionalProperties: false,
};
const RESPONSE_FORMAT = { type: "json_schema", json_schema: { name: "verdict", strict: true, schema: PARAMETERS } };
const TOOLS = [
  { type: "function", function: { name: "classify", description: "Tells what a name is.", parameters: PARAMETERS, strict: true } },
];

function matches(value) {
  assert.deepEqual(Object.keys(value).sort(), ["certain", "kind", "mood"]);
  assert.ok(PARAMETERS.properties.kind.enum.includes(value.kind));
  assert.ok(PARAMETERS.properties.mood.enum.includes(value.mood));
  assert.equal(typeof value.certain, "boolean");
}

test("an answer matches its schema", async () => {
  const answer = await demo.chat.completions.create({ model: "demo", messages: QUESTION, response_format: RESPONSE_FORMAT });

  matches(JSON.parse(answer.choices[0].message.content));
  assert.equal(answer.choices[0].finish_reason, "stop");
});

test("a parsed answer is an object", async () => {
  const answer = await demo.chat.completions.parse({ model: "demo", messages: QUESTION, response_format: RESPONSE_FORMAT });

  assert.equal(answer.choices[0].message.refusal, null);
  matches(JSON.parse(answer.choices[0].message.content));
});

test("a streamed answer matches its schema", async () => {
  const runner = demo.chat.completions.stream({ model: "demo", messages: QUESTION, response_format: RESPONSE_FORMAT });

  matches(JSON.parse(await runner.finalContent()));
});

test("a required call has a name, an id and arguments that match", async () => {
  const answer = await demo.chat.completions.create({
    model: "demo", messages: QUESTION, tools: TOOLS, tool_choice: "required",
  });
  const [choice] = answer.choices;
  const [call] = choice.message.tool_calls;

  assert.equal(choice.finish_reason, "tool_calls");
  assert.equal(choice.message.content, null);
  assert.equal(call.type, "function");
  assert.ok(call.id);
  assert.equal(call.function.name, "classify");
  matches(JSON.parse(call.function.arguments));
});

test("a streamed call is put together once", async () => {
  const stream = await demo.chat.completions.create({
    model: "demo", messages: QUESTION, tools: TOOLS, tool_choice: "required", stream: true,
  });
  const ids = [];
  const names = [];
  let written = "";
  let reason = null;
  for await (const chunk of stream) {
    const [choice] = chunk.choices;
    for (const call of choice.delta.tool_calls ?? []) {
      assert.equal(call.index, 0);
      if (call.id) ids.push(call.id);
      if (call.function.name) names.push(call.function.name);
      written += call.function.arguments ?? "";
    }
    reason = choice.finish_reason ?? reason;
  }

  assert.equal(ids.length, 1);
  assert.deepEqual(names, ["classify"]);
  matches(JSON.parse(written));
  assert.equal(reason, "tool_calls");
});

test("a named function is run by the helper and its result is sent back", async () => {
  const seen = [];
  const runner = demo.chat.completions.runTools({
    model: "demo",
    messages: QUESTION,
    tool_choice: { type: "function", function: { name: "classify" } },
    tools: [
      {
        type: "function",
        function: {
          name: "classify", description: "Tells what a name is.", parameters: PARAMETERS, parse: JSON.parse,
          function: (value) => {
            seen.push(value);
            return "noted";
          },
        },
      },
    ],
  });
  await runner.done();

  assert.equal(seen.length, 1);
  matches(seen[0]);
  assert.equal(runner.messages.at(-1).content, "noted");
});

test("a conversation goes on after a call", async () => {
  const called = await demo.chat.completions.create({
    model: "demo", messages: QUESTION, tools: TOOLS, tool_choice: "required",
  });
  const { message } = called.choices[0];
  const answer = await demo.chat.completions.create({
    model: "demo",
    messages: [...QUESTION, message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "It is a function." }],
    tools: TOOLS,
    tool_choice: "none",
    max_tokens: 20,
  });

  assert.equal(typeof answer.choices[0].message.content, "string");
  assert.equal(answer.choices[0].message.tool_calls, undefined);
});
