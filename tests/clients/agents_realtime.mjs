// The official `@openai/agents-realtime` SDK (RealtimeSession over its WebSocket transport), unmodified, against a relay.
// Usage: RELAY_URL=ws://127.0.0.1:8080 RELAY_TOKEN=… node agents_realtime.mjs [spoken_turn|function_call|error|side_leg|deploy]…

import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { createRequire } from "node:module";
import { z } from "zod";

import { check, Events, run, settings, speech } from "./harness.mjs";

const { url, token, model, backend } = settings();
const { version } = createRequire(import.meta.url)("./package-lock.json").packages["node_modules/@openai/agents-realtime"];

/** A new call, or with `callId` a side leg of one; the SDK takes the address of that from `connect` alone. */
async function withSession(tools, talk, { callId, instructions = "Be brief." } = {}) {
  const transport = new OpenAIRealtimeWebSocket({ url: `${url.origin}/v1/realtime?model=${encodeURIComponent(model)}` });
  const agent = new RealtimeAgent({ name: "tester", instructions, tools });
  const session = new RealtimeSession(agent, {
    transport,
    model,
    config: {
      outputModalities: ["audio"],
      audio: {
        input: {
          format: { type: "audio/pcm", rate: 24000 },
          transcription: { model: "gpt-4o-mini-transcribe" },
          turnDetection: { type: "server_vad" },
        },
      },
    },
  });
  const events = new Events();
  const errors = new Events();
  let upgrade = {};
  transport.on("connection_change", (state) => {
    if (state === "connecting")
      transport.connectionState.websocket.on("upgrade", ({ headers }) => (upgrade = headers));
    if (state === "disconnected") events.end("the connection is closed");
  });
  session.on("transport_event", (event) => events.add(event));
  session.on("error", ({ error }) => errors.add({ type: "error", error }));
  session.on("audio", ({ data }) => events.add({ type: "sdk.audio", bytes: data.byteLength }));
  session.on("agent_tool_start", () => events.add({ type: "sdk.tool_start" }));
  session.on("agent_tool_end", (_context, _agent, _tool, result) => events.add({ type: "sdk.tool_end", result }));
  session.on("history_updated", () => events.add({ type: "sdk.history" }));
  try {
    const side = { apiKey: backend.token, callId, url: `${backend.url.origin}/v1/realtime?call_id=${callId}` };
    await session.connect(callId ? side : { apiKey: token });
    await events.wait("session.created");
    await events.wait("session.updated");
    const result = await talk(session, events, errors, upgrade["x-call-id"]);
    return { call_id: upgrade["x-call-id"] ?? null, node: upgrade["x-relay-node"] ?? null, ...result };
  } finally {
    session.close();
  }
}

function spokenTurn() {
  return withSession([], async (session, events, errors) => {
    for await (const pcm of speech()) session.sendAudio(pcm);
    await events.wait("input_audio_buffer.speech_started");
    await events.wait("input_audio_buffer.committed");
    await events.wait("response.created");
    const { bytes } = await events.wait("sdk.audio");
    check(bytes > 0, "the first audio event is empty");
    const { response } = await events.wait("response.done");
    check(response.status === "completed", `the response is ${response.status}: ${JSON.stringify(response.status_details)}`);
    // The SDK's own picture of the conversation: both sides, with their transcripts.
    await events.until("history with both transcripts", () =>
      ["user", "assistant"].every((role) =>
        session.history.some((item) => item.role === role && item.content[0]?.transcript),
      ),
    );
    check(errors.count("error") === 0, "the SDK reported an error");
    return {
      audio_events: events.count("sdk.audio"),
      transcripts: session.history.map((item) => item.content?.[0]?.transcript),
      response: response.status,
    };
  });
}

function functionCall() {
  const cities = [];
  const weather = tool({
    name: "get_weather",
    description: "The weather in a city.",
    parameters: z.object({ city: z.string() }),
    execute: ({ city }) => {
      cities.push(city);
      return { celsius: 21 };
    },
  });
  return withSession([weather], async (session, events, errors) => {
    session.sendMessage("Use get_weather to tell me the weather in Paris.");
    await events.wait("response.function_call_arguments.done");
    const { result } = await events.wait("sdk.tool_end");
    // The response that called the tool ends before or after the tool does; the answer is the one that says something.
    const { response } = await events.wait("response.done", ({ response: { output } }) =>
      output?.some((item) => item.type === "message"),
    );
    check(response.status === "completed", `the second response is ${response.status}`);
    check(cities.length === 1, `the tool ran ${cities.length} times`);
    check(events.count("response.done") === 2, `there were ${events.count("response.done")} responses`);
    check(errors.count("error") === 0, "the SDK reported an error");
    return { arguments: cities, result, response: response.status };
  });
}

function errorEvent() {
  return withSession([], async (session, events, errors) => {
    const event_id = "evt_of_the_client";
    session.transport.sendEvent({
      type: "session.update",
      event_id,
      session: { type: "realtime", no_such_parameter: true },
    });
    const { error } = await events.wait("error");
    check(error.event_id === event_id, `the error names event ${error.event_id}, not ${event_id}`);
    await errors.wait("error");
    session.sendMessage("Are you still there?");
    const { response } = await events.wait("response.done"); // the session lives on
    check(response.status === "completed", `the response after the error is ${response.status}`);
    return { code: error.code, message: error.message, param: error.param, event_id: error.event_id };
  });
}

function sideLeg() {
  return withSession([], async (session, events, errors, callId) => {
    const supervise = async (side, seen, wrong) => {
      const isTheirs = ({ session: { instructions } }) => instructions === "Supervise.";
      await events.wait("session.updated", isTheirs); // what its connect sends changes the call
      side.sendMessage("What do you hear?");
      const { response } = await seen.wait("response.done");
      check((await events.wait("response.done")).response.id === response.id, "the client has another response");
      check(seen.count("sdk.audio") === 0, "the side leg got audio");
      check(events.count("sdk.audio") > 0, "the client got no audio");
      check(wrong.count("error") === 0, "its SDK reported an error");
      return { transcripts: side.history.map((item) => item.content?.[0]?.text ?? item.content?.[0]?.transcript) };
    };
    const first = await withSession([], supervise, { callId, instructions: "Supervise." });
    check(first.call_id === callId, `the side leg is of ${first.call_id}`);
    session.sendMessage("Are you still there?");
    const { response } = await events.wait("response.done"); // the call lives on without it
    check(response.status === "completed", `the response after it left is ${response.status}`);
    check(errors.count("error") === 0, "the SDK reported an error");
    check(events.count("session.created") === 1, "the client was told of another session");
    return { side_leg: first };
  });
}

/** Two sessions: the node that has the first is drained by whoever runs this, and the second goes on with its call. */
async function deploy() {
  const first = await withSession([], async (session, events, errors) => {
    session.sendMessage("My name is Ada.");
    await events.wait("response.done");
    const end = await events.wait("never").catch((failure) => failure.message);
    check(end.endsWith("the connection is closed"), end);
    return { errors: errors.count("error") };
  });
  const second = await withSession([], async (session, events, errors) => {
    session.sendMessage("What is my name?");
    const { response } = await events.wait("response.done");
    check(response.status === "completed", `the response after the deploy is ${response.status}`);
    check(errors.count("error") === 0, "the SDK reported an error");
    return { sessions: events.count("session.created") };
  });
  check(first.call_id === second.call_id, "the second session is of another call");
  return { first, second };
}

await run(`@openai/agents-realtime ${version}`, {
  spoken_turn: spokenTurn,
  function_call: functionCall,
  error: errorEvent,
  side_leg: sideLeg,
  deploy,
});
