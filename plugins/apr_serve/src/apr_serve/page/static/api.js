// What the pages ask of the server. Addresses are relative: a proxy may serve it under any path.

/** An answer that is not one: `message` is the server's own wording where it gave one. */
export class ServerError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const KEY = "apr.key"; // for this tab only: closing it forgets the key

export function storedKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function storeKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // without storage the key is asked for again
  }
}

/** Fetches; raises ServerError when there is no answer or one that says no. */
export async function ask(path, options = {}) {
  const key = storedKey();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  const retryAfter = response.headers.get("Retry-After");
  return new ServerError(
    wordsOf(text) || `The server answered with ${response.status}.`,
    response.status,
    retryAfter,
  );
}

function wordsOf(text) {
  try {
    return messageOf(JSON.parse(text));
  } catch {
    return text.length < 500 && !text.includes("<") ? text.trim() : "";
  }
}

/** The sentence in an error object, in any of the usual shapes. */
export function messageOf(body) {
  const error = body?.error ?? body?.detail ?? body;
  if (typeof error === "string") return error;
  if (Array.isArray(error))
    return error
      .map((one) => one?.msg ?? "")
      .filter(Boolean)
      .join("; ");
  return error?.message ?? "";
}

export async function models() {
  const answer = await (await ask("v1/models")).json();
  return answer.data.map((model) => model.id);
}

/** Chunks of a streamed chat completion. Raises ServerError, also for an error in midstream. */
export async function* chatChunks(body, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error)
      throw new ServerError(messageOf(chunk) || "The server failed.", chunk.error.status);
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer did.");
}

/** The data of each server-sent event of a stream of bytes. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (waiting + value).split(/\r?\n\r?\n/);
      waiting = parts.pop();
      for (const part of parts) {
        const data = dataOf(part);
        if (data !== null) yield data;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServerError) throw error;
    throw new ServerError("The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading also stops the server
  }
}

function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  if (!lines.length) return null; // a comment that keeps the connection open
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}
