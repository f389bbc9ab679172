// One call: its socket, what it sends, and what each event that comes in does to playback, transcript and state.
// Never touches the page's elements, the microphone or the loudspeaker: audio comes in as PCM and goes to a player.

import * as advice from "./advice.js";

const MAX_BUFFERED_BYTES = 1_000_000; // about 15 s of audio that the network did not take: older than anyone wants to hear

const SESSION = {
  type: "realtime",
  output_modalities: ["audio"],
  audio: {
    input: {
      transcription: { model: "gpt-4o-mini-transcribe" },
      turn_detection: { type: "server_vad" },
    },
  },
};

export class Call {
  state = "connecting"; // connecting, live, ended
  callId = null;
  node = null;
  region = null;
  userSpeaking = false;
  deltas = 0;
  bargeIns = 0;
  droppedChunks = 0;

  #socket;
  #token;
  #player;
  #transcript;
  #on;
  #opened = false;
  #response = null; // id of the response under way
  #streaming = null; // id of the item whose audio is still arriving
  #cut = new Set(); // responses that were interrupted: what still arrives of them is not played

  /** `on` has change(), line(line), problem({what, todo}) and end(). */
  constructor({ url, token, player, transcript, on }) {
    this.#token = token;
    this.#player = player;
    this.#transcript = transcript;
    this.#on = on;
    this.#socket = new WebSocket(url, ["relay.events.v1", "realtime", `openai-insecure-api-key.${token}`]);
    this.#socket.onopen = () => (this.#opened = true);
    this.#socket.onmessage = ({ data }) => this.#receive(data);
    this.#socket.onclose = ({ code, reason }) => this.#closed(code, reason);
  }

  /** Send 20 ms of microphone, or drop it and count it where the network has stopped taking it. */
  sendAudio(pcm) {
    if (this.state !== "live") return;
    if (this.#socket.bufferedAmount > MAX_BUFFERED_BYTES) {
      this.droppedChunks += 1;
      return;
    }
    const bytes = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
    this.#send({ type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...bytes)) });
  }

  hangUp() {
    this.#socket.close(1000, "the person hung up");
    this.#closed(1000, "");
  }

  #send(event) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(event));
  }

  #receive(data) {
    if (this.state === "ended") return;
    const event = JSON.parse(data);
    this.#handle(event);
    const finished = this.#transcript.apply(event);
    if (finished) this.#on.line(finished);
    this.#on.change();
  }

  #handle(event) {
    switch (event.type) {
      case "relay.started": // instead of the upgrade's X-Call-Id, X-Relay-Node and X-Relay-Region, which no browser shows
        this.callId = event.call_id;
        this.node = event.node;
        this.region = event.region;
        return;
      case "session.created":
        if (this.state === "live") return;
        this.state = "live";
        this.#send({ type: "session.update", session: SESSION });
        return;
      case "response.created":
        this.#response = event.response.id;
        return;
      case "response.done":
        this.#response = null;
        this.#cut.delete(event.response.id);
        if (event.response.status === "failed") this.#on.problem(advice.forResponse(event.response.status_details));
        return;
      case "response.output_audio.delta":
        this.#play(event);
        return;
      case "response.output_audio.done":
        this.#streaming = null;
        return;
      case "input_audio_buffer.speech_started":
        this.userSpeaking = true;
        this.#interrupt();
        return;
      case "input_audio_buffer.speech_stopped":
        this.userSpeaking = false;
        return;
      case "output_audio_buffer.cleared": // a backend interrupted, and has told the model how much was heard
        if (this.#response) this.#cut.add(this.#response);
        this.#player.stop();
        this.#streaming = null;
        return;
      case "error":
        this.#on.problem(advice.forEvent(event.error));
        return;
    }
  }

  #play({ response_id, item_id, content_index, delta }) {
    this.deltas += 1;
    if (this.#cut.has(response_id)) return;
    this.#streaming = item_id;
    const bytes = Uint8Array.from(atob(delta), (character) => character.charCodeAt(0));
    if (!this.#player.play(item_id, content_index, bytes))
      this.#on.problem({ what: "The answer is too long to be kept for playing.", todo: "Interrupt it." });
  }

  // The model's server stops generating by itself; what it has already sent is ours to silence, and it has to be told
  // how much of it was heard, or it believes that all of it was.
  #interrupt() {
    if (this.#response) this.#cut.add(this.#response);
    const unheard = this.#player
      .stop()
      .filter(({ itemId, heardMs, receivedMs }) => heardMs < receivedMs || itemId === this.#streaming);
    this.#streaming = null;
    if (unheard.length > 0) this.bargeIns += 1;
    for (const { itemId, contentIndex, heardMs } of unheard)
      this.#send({
        type: "conversation.item.truncate",
        item_id: itemId,
        content_index: contentIndex,
        audio_end_ms: heardMs,
      });
  }

  #closed(code, reason) {
    if (this.state === "ended") return;
    this.state = "ended";
    this.userSpeaking = false;
    const problem = advice.forClose(code, reason, this.#opened, expired(this.#token));
    if (problem) this.#on.problem(problem);
    this.#on.end();
  }
}

function expired(token) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return claims.exp * 1000 < Date.now();
  } catch {
    return false; // not a JWT: nothing can be said
  }
}
