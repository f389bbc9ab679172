// Realtime events in, the conversation's lines in order out. Pure: no page, no audio, no clock.

const MAX_LINES = 300; // the page keeps the newest; the relay's memory has the whole conversation

/** A line is {id, role, text, done, note}; role is user, assistant, system, tool, or relay for what is no item. */
export class Transcript {
  lines = [];
  #remarks = 0;

  /** Take an event in; returns the line that it finished, else null. */
  apply(event) {
    switch (event.type) {
      case "input_audio_buffer.committed":
        this.#line(event.item_id, "user", event.previous_item_id);
        return null;
      case "conversation.item.added":
      case "conversation.item.done":
        return this.#item(event);
      case "conversation.item.deleted":
        this.lines = this.lines.filter((line) => line.id !== event.item_id);
        return null;
      case "conversation.item.truncated":
        this.note(event.item_id, `interrupted after ${(event.audio_end_ms / 1000).toFixed(1)} s`);
        return null;
      case "conversation.item.input_audio_transcription.delta":
        this.#grow(event.item_id, "user", event.delta);
        return null;
      case "conversation.item.input_audio_transcription.completed":
        return this.#finish(event.item_id, "user", event.transcript);
      case "conversation.item.input_audio_transcription.failed":
        this.note(event.item_id, `not transcribed: ${event.error?.message ?? "no reason given"}`);
        return this.#finish(event.item_id, "user", "");
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        this.#grow(event.item_id, "assistant", event.delta);
        return null;
      case "response.output_audio_transcript.done":
        return this.#finish(event.item_id, "assistant", event.transcript);
      case "response.output_text.done":
        return this.#finish(event.item_id, "assistant", event.text);
      default:
        return null;
    }
  }

  /** Put a remark behind a line that is there. */
  note(id, text) {
    const line = this.lines.find((candidate) => candidate.id === id);
    if (line) line.note = text;
  }

  /** Add a line about the call itself at the end, and return it. */
  remark(text) {
    const line = this.#line(`remark ${++this.#remarks}`, "relay");
    line.text = text;
    line.done = true;
    return line;
  }

  #item({ type, item, previous_item_id: previous }) {
    const wasDone = this.lines.find((line) => line.id === item.id)?.done;
    const line = this.#line(item.id, roleOf(item), previous);
    const text = textOf(item);
    // A spoken line comes by its transcript events, which may be ahead of the item's.
    if (text && !line.done) line.text = text;
    const spoken = item.content?.some((part) => part.type === "input_audio");
    if (type === "conversation.item.done" && !(spoken && !text)) line.done = true;
    return line.done && !wasDone ? line : null;
  }

  #grow(id, role, delta) {
    const line = this.#line(id, role);
    if (!line.done) line.text += delta ?? "";
  }

  #finish(id, role, text) {
    const line = this.#line(id, role);
    const wasDone = line.done;
    if (text) line.text = text;
    line.done = true;
    return wasDone ? null : line;
  }

  #line(id, role, previous) {
    const known = this.lines.find((line) => line.id === id);
    if (known) return known;
    const line = { id, role, text: "", done: false, note: "" };
    const at = this.lines.findIndex((candidate) => candidate.id === previous);
    this.lines.splice(at < 0 ? this.lines.length : at + 1, 0, line);
    if (this.lines.length > MAX_LINES) this.lines.shift();
    return line;
  }
}

function roleOf(item) {
  return item.type === "message" ? item.role : "tool";
}

function textOf(item) {
  switch (item.type) {
    case "message":
      return (item.content ?? []).map((part) => part.text ?? part.transcript ?? "").join("");
    case "function_call":
      return `${item.name}(${item.arguments ?? ""})`;
    case "function_call_output":
      return `→ ${item.output}`;
    default:
      return item.type;
  }
}
