// How messages look. A view shows one message and grows with it.
import { append, copyButton, element } from "./dom.js";
import { MarkdownStream } from "./markdown.js";

const NOTES = {
  length: "The answer reached its token limit.",
  repetition: "Ended here, because the answer repeated itself without end.",
  context: "The answer reached the end of the model's context.",
  cancelled: "Stopped.",
  left: "The page was left before the answer was complete.",
};

export function userView(message, actions) {
  const text = element("div", { class: "bubble", dir: "auto" }, message.content);
  const edit = button("Edit", "Edit this message", actions.edit);
  edit.classList.add("last-only");
  const tools = element(
    "div",
    { class: "actions" },
    edit,
    copyButton(() => message.content, "Copy message"),
  );
  return element("article", { class: "turn user", "aria-label": "You" }, text, tools);
}

/** What a tool answered, as the person typed it. */
export function toolResultView(message) {
  const title = element(
    "div",
    { class: "call-head" },
    "Result of ",
    element("b", {}, message.name ?? "the tool"),
  );
  return element(
    "article",
    { class: "turn tool", "aria-label": "Tool result" },
    element("div", { class: "call" }, title, element("pre", { tabindex: "0" }, message.content)),
  );
}

function button(text, label, pressed) {
  return element(
    "button",
    { type: "button", class: "quiet", "aria-label": label, onclick: pressed },
    text,
  );
}

export class AnswerView {
  /** `actions`: regenerate, retry and answerCalls(results), called by its buttons. */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.reasoningToggled = false;
    this.parts = this.build();
    this.root = element(
      "article",
      { class: "turn answer", "aria-label": "Answer" },
      Object.values(this.parts),
    );
    this.reasoning = new MarkdownStream(this.parts.reasoning.lastChild);
    this.text = new MarkdownStream(this.parts.text);
    this.calls = [];
  }

  build() {
    const summary = element("summary", {}, "Thinking…");
    summary.addEventListener("click", () => (this.reasoningToggled = true));
    return {
      waiting: element(
        "div",
        { class: "waiting", hidden: true },
        dots(),
        element("span", {}, "Waiting for the first token"),
      ),
      reasoning: element(
        "details",
        { class: "reasoning", hidden: true },
        summary,
        element("div", { class: "prose" }),
      ),
      text: element("div", { class: "prose" }),
      calls: element("div", { class: "calls" }),
      note: element("p", { class: "note", hidden: true }),
      error: element("div", { class: "error", role: "alert", hidden: true }),
      footer: element("div", { class: "actions", hidden: true }),
    };
  }

  /** Shows a message that is complete: one from history. */
  showAll() {
    const { message } = this;
    if (message.reasoning_content) this.addReasoning(message.reasoning_content);
    if (message.content) this.addText(message.content);
    for (const [index, call] of (message.tool_calls ?? []).entries()) this.showCall(index, call);
    this.finish();
  }

  begin() {
    this.root.setAttribute("aria-busy", "true");
    this.parts.waiting.hidden = false;
  }

  addReasoning(text) {
    const { reasoning, waiting } = this.parts;
    waiting.hidden = true;
    if (reasoning.hidden) {
      reasoning.hidden = false;
      reasoning.open = true;
    }
    this.reasoning.push(text);
  }

  addText(text) {
    this.parts.waiting.hidden = true;
    this.closeReasoning();
    this.text.push(text);
  }

  closeReasoning() {
    const { reasoning } = this.parts;
    if (reasoning.hidden || this.thoughtOver) return;
    this.thoughtOver = true;
    const seconds = this.message.stats?.thinking_s;
    reasoning.firstChild.textContent = seconds
      ? `Thought for ${shortSeconds(seconds)}`
      : "Thoughts";
    if (!this.reasoningToggled) reasoning.open = false; // what the reader chose stays
  }

  showCall(index, call) {
    this.parts.waiting.hidden = true;
    this.closeReasoning();
    const name = element(
      "div",
      { class: "call-head" },
      "Calls ",
      element("b", {}, call.function.name),
    );
    const body = element(
      "pre",
      { tabindex: "0", "aria-label": `Arguments of ${call.function.name}` },
      call.function.arguments,
    );
    this.calls[index] = { call, body };
    this.parts.calls.append(element("div", { class: "call" }, name, body));
  }

  growCall(index) {
    const { call, body } = this.calls[index];
    body.textContent = call.function.arguments;
  }

  /** Live figures while the answer is written. */
  showSpeed(words) {
    this.parts.footer.hidden = false;
    this.parts.footer.replaceChildren(element("span", { class: "speed" }, words));
  }

  finish() {
    const { message, parts } = this;
    this.root.removeAttribute("aria-busy");
    parts.waiting.hidden = true;
    this.reasoning.finish();
    this.text.finish();
    this.closeReasoning();
    for (const { call, body } of this.calls) body.replaceWith(argumentsTable(call, body));
    this.showNote(NOTES[message.ended]);
    if (message.error) this.showError(message.error);
    this.showFooter();
    if (this.calls.length && message.ended === "tool_calls") this.askForResults();
  }

  showNote(text) {
    this.parts.note.hidden = !text;
    this.parts.note.textContent = text ?? "";
  }

  showError(text) {
    const retry = button("Try again", "Try again", this.actions.regenerate);
    retry.classList.add("last-only"); // it is the last answer that is tried again
    this.parts.error.replaceChildren(element("span", {}, text), retry);
    this.parts.error.hidden = false;
  }

  showFooter() {
    const { footer } = this.parts;
    footer.hidden = false;
    footer.replaceChildren();
    const again = button("Regenerate", "Generate this answer anew", this.actions.regenerate);
    again.classList.add("last-only");
    const copy = this.message.content
      ? copyButton(() => this.message.content, "Copy answer")
      : null;
    append(footer, [copy, again, element("span", { class: "speed" }, speedOf(this.message.stats))]);
  }

  /** Fields for what the called tools answer: the person stands in for the program. */
  askForResults() {
    const fields = this.calls.map(({ call }) =>
      element("textarea", {
        rows: "2",
        "aria-label": `Result of ${call.function.name}`,
        placeholder: `What ${call.function.name} returns`,
        required: true,
      }),
    );
    const form = element(
      "form",
      { class: "results last-only" },
      fields,
      element("button", { class: "primary" }, fields.length > 1 ? "Send results" : "Send result"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const results = this.calls.map(({ call }, index) => ({
        role: "tool",
        tool_call_id: call.id,
        name: call.function.name,
        content: fields[index].value,
      }));
      form.remove();
      this.actions.answerCalls(results);
    });
    this.parts.calls.append(form);
  }
}

function dots() {
  return element(
    "span",
    { class: "dots", "aria-hidden": "true" },
    element("i"),
    element("i"),
    element("i"),
  );
}

function argumentsTable(call, body) {
  let values;
  try {
    values = JSON.parse(call.function.arguments || "{}");
  } catch {
    return body; // cut off: it stays as it came
  }
  const rows = Object.entries(values).map(([name, value]) => [
    element("dt", {}, name),
    element("dd", {}, typeof value === "string" ? value : JSON.stringify(value, null, 2)),
  ]);
  return rows.length
    ? element("dl", {}, rows)
    : element("p", { class: "note" }, "without arguments");
}

export function speedOf(stats) {
  if (!stats) return "";
  const parts = [];
  if (stats.tokens_per_s)
    parts.push(`${stats.tokens_per_s.toFixed(stats.tokens_per_s < 10 ? 1 : 0)} tok/s`);
  if (stats.first_token_s !== undefined)
    parts.push(`first token ${shortSeconds(stats.first_token_s)}`);
  if (stats.completion_tokens) parts.push(counted(stats.completion_tokens, "token"));
  if (stats.prompt_tokens) {
    const cached = stats.cached_tokens
      ? `, ${stats.cached_tokens.toLocaleString("en")} cached`
      : "";
    parts.push(`prompt ${stats.prompt_tokens.toLocaleString("en")}${cached}`);
  }
  return parts.join(" · ");
}

function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

export function shortSeconds(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}
