// The settings: what is asked of the model beside the messages. Empty fields are not sent.
import * as store from "./store.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

export class Panel {
  constructor(dialog, form) {
    this.dialog = dialog;
    this.form = form;
    this.fill(store.settings());
    form.addEventListener("input", () => this.changed());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (form.reportValidity()) dialog.close();
    });
    form.addEventListener("reset", () => setTimeout(() => this.changed())); // once it is done
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }

  fill(values) {
    for (const field of this.form.elements) {
      if (field.name && values[field.name] !== undefined) field.value = values[field.name];
    }
    this.checkTools();
  }

  changed() {
    this.checkTools();
    store.keepSettings({ ...store.settings(), ...this.values() });
  }

  values() {
    const named = [...this.form.elements].filter((field) => field.name);
    return Object.fromEntries(named.map((field) => [field.name, field.value]));
  }

  checkTools() {
    const field = this.form.elements.tools;
    field.setCustomValidity(problemOf(field.value));
    const shown = document.getElementById("tools-problem");
    shown.textContent = field.validationMessage;
    field.setAttribute("aria-invalid", String(Boolean(field.validationMessage)));
  }

  /** The part of a request that the settings decide. */
  request() {
    const values = this.values();
    const asked = {};
    for (const name of NUMBERS) {
      const field = this.form.elements[name];
      if (field.value.trim() && field.validity.valid) asked[name] = Number(field.value);
    }
    if (values.thinking) asked.chat_template_kwargs = { enable_thinking: values.thinking === "on" };
    if (values.tools.trim() && !problemOf(values.tools)) asked.tools = toolsOf(values.tools);
    return asked;
  }

  /** What is told of fields that are not sent, because no server could take them. */
  problem() {
    const wrong = [...this.form.elements].filter((field) => field.name && !field.validity.valid);
    const names = wrong.map((field) => field.labels[0].textContent.trim());
    return names.length ? `Not sent, because it is not valid: ${names.join("; ")}. See Settings.` : "";
  }

  system() {
    return this.form.elements.system.value.trim();
  }
}

/** Tools from what a person wrote: OpenAI's list, or the functions alone. */
function toolsOf(text) {
  const given = JSON.parse(text);
  return [given]
    .flat()
    .map((tool) => (tool.function ? tool : { type: "function", function: tool }));
}

function problemOf(text) {
  if (!text.trim()) return "";
  try {
    const nameless = toolsOf(text).some((tool) => !tool.function?.name);
    return nameless ? "Every tool needs a name." : "";
  } catch (error) {
    return `This is not JSON: ${error.message}`;
  }
}
