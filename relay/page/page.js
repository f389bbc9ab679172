// The page: its elements, and how microphone, call, player, transcript and the nodes' HTTP surface hang together.
// What an event means is call.js; what was said is transcript.js; sound is audio.js; what to do about failures advice.js.

import * as advice from "./advice.js";
import { openMicrophone, Player } from "./audio.js";
import { Call } from "./call.js";
import { Transcript } from "./transcript.js";

const PING_MS = 2000;
const PING_TIMEOUT_MS = 5000;
const INJECT_TIMEOUT_MS = 15_000;
const MAX_PROBLEMS = 5;

const element = (id) => document.getElementById(id);
const button = element("call-button");
const list = element("transcript");

let config = null;
let call = null;
let player = null;
let microphone = null;
let microphoneLevel = 0;
let starting = false;
let rttMs = null;
let transcript = new Transcript();
let problems = [];

// What tests look at; live.
window.__relay = {
  get state() {
    return starting ? "starting" : (call?.state ?? "idle");
  },
  get callId() {
    return call?.callId ?? null;
  },
  get node() {
    return call?.node ?? null;
  },
  get region() {
    return call?.region ?? null;
  },
  get deltas() {
    return call?.deltas ?? 0;
  },
  get playedMs() {
    return player?.playedMs ?? 0;
  },
  get bargeIns() {
    return call?.bargeIns ?? 0;
  },
  get transcript() {
    return transcript.lines;
  },
  get errors() {
    return problems;
  },
  get rttMs() {
    return rttMs;
  },
  get droppedChunks() {
    return call?.droppedChunks ?? 0;
  },
  get resumes() {
    return call?.resumes ?? 0;
  },
  get lost() {
    return call?.lost ?? null;
  },
};

// The call

button.onclick = () => (call && call.state !== "ended" ? call.hangUp() : start());

async function start() {
  problems = [];
  transcript = new Transcript();
  starting = true;
  call = null;
  show();
  try {
    player = new Player();
    await player.start();
    microphone = await openMicrophone(onChunk, () =>
      report({ what: "The microphone went away.", todo: "Plug it in, stop the call and start again." }),
    );
    await loadConfig(); // anew for each call: tokens are short-lived
    call = new Call({
      origins: origins(),
      model: config.model,
      token: config.token,
      player,
      transcript,
      on: { change: show, line: announce, problem: report, end: release },
    });
  } catch (error) {
    report(error instanceof ConfigError ? advice.forConfig(error.status) : advice.forMicrophone(error));
    release();
  } finally {
    starting = false;
    show();
  }
}

// Where calls are taken: here, then at the other nodes, those of this region first.
function origins() {
  const near = (node) => (node.region === config.region ? 0 : 1);
  const others = config.nodes.toSorted((a, b) => near(a) - near(b)).map(({ url }) => new URL(url).origin);
  return [...new Set([location.origin, ...others])].map((origin) => origin.replace(/^http/, "ws"));
}

function onChunk(pcm, level) {
  microphoneLevel = level;
  call?.sendAudio(pcm);
}

function release() {
  microphone?.close();
  microphone = null;
  microphoneLevel = 0;
  player?.close();
  show();
}

// The node: settings and round trip

class ConfigError extends Error {
  constructor(status) {
    super(`no settings: HTTP ${status}`);
    this.status = status;
  }
}

async function loadConfig() {
  const answer = await fetch("/page/config.json", { cache: "no-store" }).catch(() => null);
  if (!answer?.ok) throw new ConfigError(answer?.status ?? 0);
  config = await answer.json();
}

async function ping() {
  try {
    const before = performance.now();
    await fetch("/page/ping", { cache: "no-store", signal: AbortSignal.timeout(PING_TIMEOUT_MS) });
    rttMs = Math.round((performance.now() - before) * 10) / 10;
    element("rtt").textContent = `${rttMs} ms`;
  } catch {
    rttMs = null;
    element("rtt").textContent = "no answer";
  }
  setTimeout(ping, PING_MS);
}

// Messages through another node

const nodeSelect = element("inject-node");
let nodeChosen = false;
let injecting = false;
nodeSelect.onchange = () => (nodeChosen = true);

function fillNodes() {
  const chosen = nodeSelect.value;
  const here = call?.node ?? config.node;
  nodeSelect.replaceChildren(
    ...config.nodes.map(({ name, region }) => new Option(`${name} (${region}${name === here ? ", has this call" : ""})`, name)),
  );
  const region = call?.region ?? config.region;
  const others = config.nodes.filter(({ name }) => name !== here);
  const preset = others.find((node) => node.region === region) ?? others[0] ?? config.nodes[0];
  nodeSelect.value = nodeChosen ? chosen : (preset?.name ?? "");
}

element("inject").onsubmit = async (submit) => {
  submit.preventDefault();
  const node = config.nodes.find(({ name }) => name === nodeSelect.value);
  const text = element("inject-text");
  const injection = { text: text.value, answer: element("inject-answer").checked };
  injecting = true;
  show();
  element("receipt").textContent = `Sending through ${node.name}…`;
  const outcome = await inject(node, call.callId, injection);
  injecting = false;
  element("receipt").textContent = outcome.text;
  element("receipt").classList.toggle("refused", !outcome.taken);
  if (outcome.taken) text.value = "";
  show();
};

async function inject(node, callId, { text, answer }) {
  const item = { type: "message", role: "system", content: [{ type: "input_text", text }] };
  let response;
  await loadConfig().catch(() => {}); // a call may outlive a token, and the node that the page came from
  try {
    response = await fetch(`${node.url}/v1/realtime/calls/${callId}/items?wait=applied`, {
      method: "POST",
      headers: { Authorization: `Bearer ${config.backend_token}`, "Content-Type": "application/json" },
      body: JSON.stringify({ item, response: answer }),
      signal: AbortSignal.timeout(INJECT_TIMEOUT_MS),
    });
  } catch {
    return refused(advice.forInjection(node.name, 0));
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) return refused(advice.forInjection(node.name, response.status, body.error));
  return { taken: true, text: receiptText(node.name, body) };
}

function refused({ what, todo }) {
  return { taken: false, text: `${what} ${todo}`.trim() };
}

function receiptText(through, receipt) {
  const { accepted, applied } = receipt.reached ?? {};
  const said = [`Status: ${receipt.status}`, `through ${through}`];
  if (receipt.node) said.push(`the call is on ${receipt.node}`);
  if (accepted && applied) said.push(`${((applied - accepted) * 1000).toFixed(1)} ms from accepted to applied`);
  if (receipt.error) said.push(receipt.error.message ?? receipt.error);
  return `${said.join("; ")}.`;
}

// Showing

function report(problem) {
  problems.push({ ...problem, at: new Date().toISOString() });
  if (problems.length > MAX_PROBLEMS) problems.shift();
  element("problems").replaceChildren(
    ...problems.map(({ what, todo }) => {
      const item = document.createElement("li");
      const strong = document.createElement("strong");
      strong.textContent = what;
      item.append(strong, ` ${todo}`);
      return item;
    }),
  );
}

// Whole lines, once: a log that grows word by word is unbearable in a screen reader.
function announce(line) {
  element("announcer").textContent = `${line.role}: ${line.text}`;
}

let frame = 0;
let shownNode; // of the call, in the select

/** Bring the page up to date, at most once per painted frame. */
function show() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    paint();
  });
}

const HINTS = {
  idle: "Uses your microphone; with headphones it interrupts best.",
  starting: "Asking for the microphone…",
  connecting: "Connecting…",
  live: "Speak; you may interrupt the model at any time.",
  resuming: "The connection is gone; coming back to the call. What you say now is kept for two seconds.",
  ended: "The call has ended.",
};

function paint() {
  const { state, callId, node, region, bargeIns, droppedChunks, resumes } = window.__relay;
  const inCall = state === "connecting" || state === "live" || state === "resuming";
  button.disabled = state === "starting" || (config === null && problems.length === 0);
  button.textContent = inCall ? "Stop call" : "Start call";
  button.classList.toggle("stop", inCall);
  element("hint").textContent = HINTS[state];
  element("state").textContent = state;
  element("call-id").textContent = callId ?? "–";
  element("node").textContent = node ?? "–";
  element("region").textContent = region ?? "–";
  element("barge-ins").textContent = bargeIns;
  element("resumes").textContent = resumes;
  element("dropped").textContent = `${droppedChunks} chunks`;
  element("dropped").classList.toggle("refused", droppedChunks > 0);
  const isOn = state === "live" || state === "resuming"; // a message waits for a call that is on its way back
  element("inject-button").disabled = !isOn || callId === null || injecting;
  if (config && shownNode !== node) {
    shownNode = node;
    fillNodes();
    if (node) element("receipt").textContent = "";
  }
  if (problems.length === 0) element("problems").replaceChildren();
  paintTranscript();
}

function paintTranscript() {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  element("transcript-empty").hidden = transcript.lines.length > 0;
  list.hidden = transcript.lines.length === 0;
  transcript.lines.forEach((line, at) => {
    let row = list.children[at];
    if (row?.dataset.id !== line.id) {
      row = document.createElement("li");
      row.dataset.id = line.id;
      row.className = line.role;
      row.append(document.createElement("b"), document.createElement("span"), document.createElement("small"));
      list.insertBefore(row, list.children[at] ?? null);
    }
    const [who, text, note] = row.children;
    setText(who, line.role);
    setText(text, line.text || (line.done ? "(nothing)" : "…"));
    setText(note, line.note);
  });
  while (list.children.length > transcript.lines.length) list.lastChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Decibels, because ears hear so: -60 dB is empty, 0 dB full.
const meter = (level) => Math.max(0, Math.min(1, 1 + (20 * Math.log10(level + 1e-9)) / 60));

setInterval(() => {
  const speaking = [call?.userSpeaking && "you", player?.playing && "the model"].filter(Boolean).join(" and ");
  setText(element("speaking"), speaking || "nobody");
  element("microphone-level").value = meter(microphoneLevel);
  element("model-level").value = player?.playing ? meter(player.level) : 0;
}, 100);

try {
  await loadConfig();
  fillNodes();
} catch (error) {
  report(advice.forConfig(error.status ?? 0));
}
show();
void ping();
