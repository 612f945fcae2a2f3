// The core checks with the official Node SDK: prints what each check saw, as one JSON object.
// test_other_sdks.py runs it and judges. BASE_URL and KEY come from the environment.

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const ASK = [{ role: "user", content: "Say this is a test, with a sea: 海" }];
const WEATHER = { name: "weather", parameters: { type: "object", properties: { deep: { type: "boolean" } } } };
const TOOLS = [{ type: "function", function: WEATHER }];
const RESPONSES_TOOLS = [{ type: "function", strict: false, ...WEATHER }];

async function all(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

const checks = {
  async chat(client) {
    const answer = await client.chat.completions.create({ model: "sim-fast", messages: ASK });
    return { text: answer.choices[0].message.content, total_tokens: answer.usage.total_tokens };
  },

  async chat_streamed(client) {
    const chunks = await all(
      await client.chat.completions.create({
        model: "sim-fast", messages: ASK, stream: true, stream_options: { include_usage: true },
      }),
    );
    const text = chunks.flatMap((chunk) => chunk.choices).map((choice) => choice.delta.content ?? "").join("");
    return { text, total_tokens: chunks.at(-1).usage.total_tokens };
  },

  async chat_helper(client) {
    const answer = await client.chat.completions.stream({ model: "sim-fast", messages: ASK }).finalChatCompletion();
    return answer.choices[0].message.content;
  },

  async tools(client) {
    const answer = await client.chat.completions.create({ model: "sim-fast-tools", messages: ASK, tools: TOOLS });
    return answer.choices[0].message.tool_calls.map((call) => [call.function.name, call.function.arguments]);
  },

  async tools_streamed(client) {
    const calls = [];
    for await (const chunk of await client.chat.completions.create({
      model: "sim-fast-tools", messages: ASK, tools: TOOLS, stream: true,
    })) {
      for (const call of chunk.choices[0].delta.tool_calls ?? []) {
        const said = (calls[call.index] ??= ["", ""]);
        said[0] += call.function.name ?? "";
        said[1] += call.function.arguments ?? "";
      }
    }
    return calls;
  },

  async responses(client) {
    return (await client.responses.create({ model: "sim-fast", input: "Hello" })).output_text;
  },

  async responses_streamed(client) {
    const events = await all(await client.responses.create({ model: "sim-fast", input: "Hello", stream: true }));
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    return {
      text: deltas.map((event) => event.delta).join(""),
      last: events.at(-1).type,
      numbers: events.map((event) => event.sequence_number),
    };
  },

  async responses_tools(client) {
    const answer = await client.responses.create({ model: "sim-fast-tools", input: "Hello", tools: RESPONSES_TOOLS });
    return answer.output.map((call) => [call.name, call.arguments]);
  },

  async embeddings(client) {
    const answer = await client.embeddings.create({
      model: "text-embedding-3-small", input: ["sea", "海"], dimensions: 16,
    });
    return answer.data.map((item) => item.embedding.length);
  },

  async completions(client) {
    const chunks = await all(await client.completions.create({ model: "sim-fast", prompt: "Once", stream: true }));
    return chunks.map((chunk) => chunk.choices[0].text).join("");
  },

  async models(client) {
    const listed = await all(client.models.list());
    return [...listed.map((model) => model.id), (await client.models.retrieve("sim-slow")).id];
  },

  async headers(client) {
    const { data, response } = await client.chat.completions.create({ model: "sim-fast", messages: ASK }).withResponse();
    const raw = await client.chat.completions.create({ model: "sim-fast", messages: ASK, stream: true }).asResponse();
    const lines = (await raw.text()).split("\n").filter((line) => line !== "");
    if (lines.at(-1) !== "data: [DONE]") throw new Error(`the raw stream ends with ${lines.at(-1)}`);
    return { sluice_id: response.headers.get("x-sluice-id"), request_id: data._request_id };
  },

  async failures(client) {
    const ask = (body) => () => client.chat.completions.create({ messages: ASK, ...body });
    const respond = (body) => () => client.responses.create({ input: "Hello", ...body });
    return {
      "wrong key": await failure(() => client.withOptions({ apiKey: "sk-wrong-key" }).models.list()),
      "unknown model": await failure(ask({ model: "gpt-9" })),
      "unknown model of a response": await failure(respond({ model: "gpt-9" })),
      "stream options": await failure(ask({ model: "sim", stream_options: { include_usage: true } })),
      "stateful": await failure(() => client.files.list()),
      "rate limit": await failure(ask({ model: "sim-error-429" })),
      "upstream's 500": await failure(ask({ model: "sim-error-500", stream: true })),
      "hang-up": await failure(ask({ model: "sim-hangup" })),
      "no stream": await failure(ask({ model: "sim-fast-not-a-stream", stream: true })),
      "reset": await failure(ask({ model: "sim-fast-reset-after-5", stream: true })),
      "cut": await failure(ask({ model: "sim-fast-cut-after-5", stream: true })),
      "truncated": await failure(ask({ model: "sim-fast-stop-after-5", stream: true })),
      "error event": await failure(ask({ model: "sim-fast-error-event-after-5", stream: true })),
      "reset response": await failure(respond({ model: "sim-fast-reset-after-5", stream: true })),
    };
  },

  // two streams aborted and one request aborted before its first byte
  async aborts(client) {
    const chat = await client.chat.completions.create({ model: "sim-1ms-100000t", messages: ASK, stream: true });
    await chat[Symbol.asyncIterator]().next();
    chat.controller.abort();
    for await (const event of await client.responses.create({ model: "sim-1ms-100000t", input: "Hello", stream: true })) {
      if (event.sequence_number === 5) break; // leaving the loop closes the stream
    }
    const controller = new AbortController();
    const asked = client.chat.completions.create(
      { model: "sim-ttft-1m", messages: ASK },
      { signal: controller.signal },
    );
    setTimeout(() => controller.abort(), 300);
    try {
      await asked;
    } catch (error) {
      if (error instanceof OpenAI.APIUserAbortError) return 3;
      throw error;
    }
    return 2;
  },
};

// What an application catches. `seen` counts the parts of a stream that came before.
async function failure(ask) {
  let seen = 0;
  try {
    const answer = await ask();
    if (answer[Symbol.asyncIterator]) for await (const _ of answer) seen += 1;
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    const { status = null, code = null, param = null, message } = error;
    return { class: error.constructor.name, seen, status, code, param, message };
  }
  return { class: null, seen };
}

const client = new OpenAI({
  baseURL: process.env.BASE_URL, apiKey: process.env.KEY, maxRetries: 0, timeout: 20_000,
});
const installed = new URL("./node_modules/openai/package.json", import.meta.url);
const saw = { language: "node", version: JSON.parse(readFileSync(installed)).version };
for (const [name, check] of Object.entries(checks)) saw[name] = await check(client);
console.log(JSON.stringify(saw));
