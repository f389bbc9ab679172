// One call: what it sends, and what each event that comes in does to playback, transcript and state.
// Never touches the page's elements, the microphone or the loudspeaker: audio comes in as PCM and goes to a player.
// Sockets, and how one follows the other, are connection.js.

import * as advice from "./advice.js";
import { Connection } from "./connection.js";

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
  state = "connecting"; // connecting, live, resuming, ended
  callId = null;
  node = null;
  region = null;
  userSpeaking = false;
  deltas = 0;
  bargeIns = 0;
  lost = null; // what the relay could not keep when the call was resumed last, in its words

  #connection;
  #player;
  #transcript;
  #on;
  #response = null; // id of the response under way
  #streaming = null; // id of the item whose audio is still arriving
  #cut = new Set(); // responses that were interrupted: what still arrives of them is not played

  /** `on` has change(), line(line), problem({what, todo}) and end(). */
  constructor({ origins, model, token, player, transcript, on }) {
    this.#player = player;
    this.#transcript = transcript;
    this.#on = on;
    this.#connection = new Connection({
      origins,
      model,
      token,
      on: { event: (event) => this.#receive(event), lost: () => this.#lost(), closed: (end) => this.#closed(end) },
    });
  }

  get resumes() {
    return this.#connection.resumes;
  }

  get droppedChunks() {
    return this.#connection.droppedChunks;
  }

  /** Send 20 ms of microphone. */
  sendAudio(pcm) {
    if (this.state === "live" || this.state === "resuming") this.#connection.sendAudio(pcm);
  }

  hangUp() {
    this.#connection.close();
    this.#closed({ code: 1000 });
  }

  #receive(event) {
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
      case "relay.moving":
        this.#remark("This node makes room: the call moves to another one.");
        return;
      case "relay.resumed":
        this.#resumed(event);
        return;
      case "session.created":
        // A call that is resumed has the session that it had.
        if (this.state === "connecting") this.#connection.send({ type: "session.update", session: SESSION });
        this.state = "live";
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
      this.#connection.send({
        type: "conversation.item.truncate",
        item_id: itemId,
        content_index: contentIndex,
        audio_end_ms: heardMs,
      });
  }

  // What was received goes on playing, and the microphone goes on being heard.
  #lost() {
    this.state = "resuming";
    this.userSpeaking = false;
    this.#on.change();
  }

  #resumed(event) {
    this.callId = event.call_id; // a page that was opened anew with the call's token did not know it
    this.node = event.node;
    this.region = event.region;
    this.lost = event.lost;
    if (event.model === "rebuilt") {
      // The response that was under way, if any, went with the session that made it.
      this.#response = this.#streaming = null;
      this.#cut.clear();
    }
    this.#remark(advice.forResumed(event));
  }

  #remark(text) {
    this.#on.line(this.#transcript.remark(text));
  }

  #closed(end) {
    if (this.state === "ended") return;
    this.state = "ended";
    this.userSpeaking = false;
    const problem = advice.forClose(end);
    if (problem) this.#on.problem(problem);
    this.#on.end();
  }
}
