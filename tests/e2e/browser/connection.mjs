// The page's connection without the page, for a server that plays a relay: speaks 150 chunks as soon as the connection is
// lost, and reports what it was told when the call is over, or resumed and all of that was sent.
// Usage: node connection.mjs '["ws://127.0.0.1:8080","ws://127.0.0.1:8081"]'

import { createRequire } from "node:module";

const ws = createRequire(new URL("../../clients/package.json", import.meta.url))("ws");

// Node has none of its own before version 22. An error is followed by a close, as in browsers, which throw nothing.
globalThis.WebSocket = class extends ws.WebSocket {
  constructor(...given) {
    super(...given);
    this.on("error", () => {});
  }
};
const { Connection } = await import("../../../relay/page/connection.js");

const CHUNKS = 150;
const told = [];
const began = performance.now();
const at = () => Math.round(performance.now() - began);

const connection = new Connection({
  origins: JSON.parse(process.argv[2]),
  model: "sim",
  token: "first",
  on: {
    event: ({ type }) => {
      told.push([type, at()]);
      if (type === "relay.resumed") setImmediate(report);
    },
    lost: () => {
      told.push(["lost", at()]);
      for (let i = 0; i < CHUNKS; i++) connection.sendAudio(new Int16Array([i]));
    },
    closed: ({ code, gaveUp }) => {
      told.push([`closed ${code}`, at()]);
      report({ gaveUp });
    },
  },
});

function report(more) {
  const { resumes, droppedChunks } = connection;
  process.stdout.write(`${JSON.stringify({ told, resumes, droppedChunks, ...more })}\n`);
  connection.close();
  setTimeout(() => process.exit(0), 200); // an attempt to come back would be seen by then
}
