// The official npm `openai` client (realtime/ws), unmodified, against a relay.
// Usage: RELAY_URL=wss://127.0.0.1:8443 RELAY_CA=cert.pem RELAY_TOKEN=… node openai_ws.mjs [spoken_turn|function_call|error|side_leg|deploy]…

import { connect } from "node:net";

import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { VERSION } from "openai/version";

import { check, Events, run, settings, speech } from "./harness.mjs";

const { url, token, model, backend } = settings();

/** The client, and the socket's options: it always asks for TLS, and a plain-text node it takes only as a connection. */
function clientFor(node, apiKey) {
  const secure = node.protocol === "wss:";
  const client = new OpenAI({ apiKey, baseURL: `${secure ? "https" : "http"}://${node.host}/v1` });
  const options = secure ? {} : { createConnection: () => connect(Number(node.port || 80), node.hostname) };
  return { client, options };
}

/** A new call, or with `callID` a side leg of one. */
async function withCall(talk, wanted = { model }, { url: node, token: apiKey } = { url, token }) {
  const { client, options } = clientFor(node, apiKey);
  const call = new OpenAIRealtimeWS({ ...wanted, options }, client);
  const events = new Events();
  let upgrade = {};
  let closing = false;
  call.socket.on("upgrade", ({ headers }) => (upgrade = headers));
  call.socket.on("close", (code, reason) => events.end(`the relay closed with ${code} ${reason}`));
  call.on("event", (event) => events.add(event));
  call.on("error", (error) => {
    // What the server sent comes as an event as well; the rest is trouble with the socket.
    if (!error.error && !closing) events.end(`${error.message}`);
  });
  try {
    await events.wait("session.created");
    const result = await talk(call, events, upgrade["x-call-id"]);
    return { call_id: upgrade["x-call-id"] ?? null, node: upgrade["x-relay-node"] ?? null, ...result };
  } finally {
    closing = true;
    call.close();
  }
}

function spokenTurn() {
  return withCall(async (call, events) => {
    call.send({
      type: "session.update",
      session: {
        type: "realtime",
        output_modalities: ["audio"],
        audio: {
          input: {
            format: { type: "audio/pcm", rate: 24000 },
            transcription: { model: "gpt-4o-mini-transcribe" },
            turn_detection: { type: "server_vad" },
          },
        },
      },
    });
    await events.wait("session.updated");
    for await (const pcm of speech())
      call.send({ type: "input_audio_buffer.append", audio: Buffer.from(pcm).toString("base64") });
    const { audio_start_ms } = await events.wait("input_audio_buffer.speech_started");
    await events.wait("input_audio_buffer.committed");
    await events.wait("response.created");
    const { delta } = await events.wait("response.output_audio.delta");
    check(Buffer.from(delta, "base64").length > 0, "the first audio delta is empty");
    const { response } = await events.wait("response.done");
    check(response.status === "completed", `the response is ${response.status}: ${JSON.stringify(response.status_details)}`);
    return { audio_start_ms, audio_deltas: events.count("response.output_audio.delta"), response: response.status };
  });
}

function functionCall() {
  return withCall(async (call, events) => {
    call.send({
      type: "session.update",
      session: {
        type: "realtime",
        tools: [
          {
            type: "function",
            name: "get_weather",
            description: "The weather in a city.",
            parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
          },
        ],
      },
    });
    await events.wait("session.updated");
    call.send({
      type: "conversation.item.create",
      item: {
        type: "message",
        role: "user",
        content: [{ type: "input_text", text: "Use get_weather to tell me the weather in Paris." }],
      },
    });
    call.send({ type: "response.create" });
    const { call_id, name, arguments: given } = await events.wait("response.function_call_arguments.done");
    check(name === undefined || name === "get_weather", `it called ${name}`);
    check(typeof JSON.parse(given).city === "string", `its arguments are ${given}`);
    await events.wait("response.done");
    call.send({
      type: "conversation.item.create",
      item: { type: "function_call_output", call_id, output: JSON.stringify({ celsius: 21 }) },
    });
    call.send({ type: "response.create" });
    const { response } = await events.wait("response.done");
    check(response.status === "completed", `the second response is ${response.status}`);
    check(response.output?.some((item) => item.type === "message"), "the second response says nothing");
    return { tool_call_id: call_id, arguments: given, response: response.status };
  });
}

function errorEvent() {
  return withCall(async (call, events) => {
    const event_id = "evt_of_the_client";
    const seen = new Promise((resolve) => call.on("error", resolve));
    call.send({ type: "session.update", event_id, session: { type: "realtime", no_such_parameter: true } });
    const { error } = await events.wait("error");
    check(error.event_id === event_id, `the error names event ${error.event_id}, not ${event_id}`);
    check((await seen).event_id !== undefined, "the client did not report it");
    call.send({ type: "session.update", session: { type: "realtime", instructions: "Go on." } });
    await events.wait("session.updated"); // the session lives on
    return { code: error.code, message: error.message, param: error.param, event_id: error.event_id };
  });
}

function sideLeg() {
  return withCall(async (call, events, callID) => {
    const first = await withCall(async (side, seen) => {
      side.send({ type: "session.update", session: { type: "realtime", instructions: "Be brief." } });
      const { event_id, session } = await events.wait("session.updated");
      check(session.instructions === "Be brief.", `the instructions are ${session.instructions}`);
      check((await seen.wait("session.updated")).event_id === event_id, "the side leg sees another event");
      call.send({ type: "response.create" });
      const { response } = await seen.wait("response.done");
      check((await events.wait("response.done")).response.id === response.id, "the client has another response");
      check(seen.count("response.output_audio.delta") === 0, "the side leg got audio");
      check(events.count("response.output_audio.delta") > 0, "the client got no audio");
      return { instructions: session.instructions };
    }, { callID }, backend);
    call.send({ type: "response.create" });
    const { response } = await events.wait("response.done"); // the call lives on without it
    check(response.status === "completed", `the response after it left is ${response.status}`);
    check(events.count("session.created") === 1, "the client was told of another session");
    return { side_leg: first };
  });
}

/** Two turns, and between them the node that has the call is drained, by whoever runs this. */
async function deploy() {
  const { client, options } = clientFor(url, token);
  const events = new Events();
  const call = new OpenAIRealtimeWS({ model, options, reconnect: true, maxQueueBytes: 1 << 20 }, client);
  call.on("reconnected", () => call.flushPending());
  call.on("close", (code) => events.end(`the relay closed with ${code}`));
  call.on("event", (event) => events.add(event));
  call.on("error", (error) => events.end(error.message));
  const ask = (text) => {
    const content = [{ type: "input_text", text }];
    call.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
    call.send({ type: "response.create" });
  };
  try {
    await events.wait("session.created");
    ask("My name is Ada.");
    await events.wait("response.done");
    await new Promise((resolve) => call.on("reconnecting", resolve));
    ask("What is my name?"); // it waits for the new connection
    await events.wait("session.created");
    const { response } = await events.wait("response.done");
    check(response.status === "completed", `the response after the deploy is ${response.status}`);
    return { sessions: events.count("session.created") };
  } finally {
    call.close();
  }
}

await run(`openai ${VERSION}`, {
  spoken_turn: spokenTurn,
  function_call: functionCall,
  error: errorEvent,
  side_leg: sideLeg,
  deploy,
});
