// One answer: the request, its chunks into the message and its view, and how fast it came.
import { chatChunks } from "./api.js";
import { speedOf } from "./turn.js";

const SHOWN = ["role", "content", "tool_calls", "tool_call_id"];

/** The messages to send: those of a chat, without what only the page knows. */
export function messagesFor(chat, system) {
  const sent = chat.messages.filter(isSendable).map((message) => {
    const plain = Object.fromEntries(
      SHOWN.filter((name) => message[name] !== undefined).map((name) => [name, message[name]]),
    );
    // within a chain of calls the model may see its thoughts again
    if (message.tool_calls && message.reasoning_content)
      plain.reasoning_content = message.reasoning_content;
    return plain;
  });
  return system ? [{ role: "system", content: system }, ...sent] : sent;
}

function isSendable(message) {
  return message.role !== "assistant" || message.content || message.tool_calls?.length;
}

export class Answering {
  constructor(message, view) {
    this.message = message;
    this.view = view;
    this.stopper = new AbortController();
    this.chunks = 0; // of text: as many tokens, or a few less
    this.began = performance.now();
  }

  stop() {
    this.stopper.abort();
  }

  /** Resolves when the answer has ended, however it ended. A refusal that wants a key is raised. */
  async run(body) {
    this.view.begin();
    try {
      for await (const chunk of chatChunks(body, this.stopper.signal)) this.take(chunk);
    } catch (error) {
      if (error.status === 401 && !this.chunks) throw error;
      if (error.name === "AbortError") this.message.ended = "cancelled";
      else this.message.error = inWords(error);
    } finally {
      this.measure();
    }
    this.view.finish();
  }

  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { delta = {} } = choice;
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought) this.grow("reasoning_content", thought);
    if (delta.content) this.grow("content", delta.content);
    for (const part of delta.tool_calls ?? []) this.takeCall(part);
    if (choice.finish_reason) this.message.ended = endOf(choice);
  }

  grow(name, text) {
    this.tick();
    if (name === "content" && this.message.reasoning_content && !this.message.content)
      this.thoughtOver();
    this.message[name] = (this.message[name] ?? "") + text;
    if (name === "content") this.view.addText(text);
    else this.view.addReasoning(text);
  }

  takeCall(part) {
    this.tick();
    this.message.tool_calls ??= [];
    const calls = this.message.tool_calls;
    const index = part.index ?? calls.length;
    if (!calls[index]) {
      if (this.message.reasoning_content && !this.message.content) this.thoughtOver();
      calls[index] = {
        id: part.id,
        type: "function",
        function: { name: part.function?.name ?? "", arguments: "" },
      };
      this.view.showCall(index, calls[index]);
    }
    calls[index].function.arguments += part.function?.arguments ?? "";
    this.view.growCall(index);
  }

  thoughtOver() {
    this.message.stats = {
      ...this.message.stats,
      thinking_s: (performance.now() - this.first) / 1000,
    };
  }

  tick() {
    const now = performance.now();
    this.first ??= now;
    this.last = now;
    this.chunks++;
    if (now - (this.shown ?? 0) < 400 || this.chunks < 4) return;
    this.shown = now;
    this.view.showSpeed(speedOf({ ...this.timing(), completion_tokens: this.chunks }));
  }

  timing() {
    if (this.first === undefined) return {};
    const seconds = (this.last - this.first) / 1000;
    const tokens = this.usage?.completion_tokens ?? this.chunks;
    const first_token_s = (this.first - this.began) / 1000;
    return {
      first_token_s,
      ...(tokens > 1 && seconds > 0 && { tokens_per_s: (tokens - 1) / seconds }),
    };
  }

  measure() {
    const {
      prompt_tokens,
      completion_tokens = this.chunks,
      prompt_tokens_details,
    } = this.usage ?? {};
    const cached_tokens = prompt_tokens_details?.cached_tokens;
    const counts = { prompt_tokens, completion_tokens, cached_tokens };
    if (this.first !== undefined)
      this.message.stats = { ...this.message.stats, ...this.timing(), ...counts };
  }
}

/** Why it ended: the finer reason where the server tells one. */
function endOf(choice) {
  const finer = choice.apr_ended_by;
  return finer === "repetition" || finer === "context" ? finer : choice.finish_reason;
}

function inWords(error) {
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return `${error.message || "Something went wrong."}${wait}`;
}
