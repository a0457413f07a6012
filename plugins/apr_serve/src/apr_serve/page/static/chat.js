// The chat page: what its buttons and keys do.
import { Answering, messagesFor } from "./answering.js";
import { models, storeKey, storedKey } from "./api.js";
import { announce } from "./dom.js";
import { drawHistory } from "./history.js";
import { Panel } from "./panel.js";
import { follow } from "./scroll.js";
import * as store from "./store.js";
import { AnswerView, toolResultView, userView } from "./turn.js";

const byId = (id) => document.getElementById(id);
const turns = byId("turns");
const input = byId("message");
const picker = byId("model");
const send = byId("send");
const scroll = follow(byId("scroller"), byId("to-end"));
const panel = new Panel(byId("settings"), byId("settings-form"));

let chat = store.newChat();
let answering = null;
let editing = false;
let lastKept = 0;
let loading = null; // the models, while they are asked for
let waiting = false; // a message is sent as soon as they are known
let left = false; // the page is on its way out

function show(opened) {
  stop();
  cancelEdit();
  chat = opened;
  turns.replaceChildren();
  for (const message of chat.messages) {
    if (message.writing) message.ended ??= "left";
    delete message.writing;
    addView(message)?.showAll();
  }
  refresh();
  requestAnimationFrame(scroll.toEnd);
}

/** Puts a message on the page. Returns the view of an answer. */
function addView(message) {
  if (message.role === "user") turns.append(userView(message, { edit }));
  else if (message.role === "tool") turns.append(toolResultView(message));
  else return addAnswer(message);
  return null;
}

function addAnswer(message) {
  const view = new AnswerView(message, { regenerate, answerCalls });
  turns.append(view.root);
  return view;
}

function refresh() {
  byId("welcome").hidden = chat.messages.length > 0;
  turns.hidden = !chat.messages.length;
  send.classList.toggle("stop", answering !== null);
  send.setAttribute("aria-label", answering ? "Stop answering" : "Send");
  send.title = answering ? "Stop (Esc)" : "Send (Enter)";
  document.title = chat.messages.length ? `${store.titleOf(chat)} · apr` : "apr chat";
  drawList();
}

function drawList() {
  drawHistory(byId("chats"), chat.id, { open: openFromList, removed: remove });
}

function keep(now = true) {
  if (!now && Date.now() - lastKept < 1000) return;
  lastKept = Date.now();
  chat.updated = lastKept;
  if (!store.keep(chat)) say("This chat is too large for the browser to keep.");
}

function say(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function submit() {
  if (answering) return stop();
  const text = input.value.trim();
  if (!text) return input.focus();
  if (!picker.value) return submitOnceKnown();
  if (editing) dropFromLastUser();
  cancelEdit();
  input.value = "";
  fitInput();
  chat.messages.push({ role: "user", content: text });
  addView(chat.messages.at(-1));
  return answer();
}

/** Sends as soon as the models are known: nobody has to press twice. */
async function submitOnceKnown() {
  if (waiting) return;
  waiting = true;
  await loadModels();
  waiting = false;
  if (picker.value) submit();
}

async function answer() {
  const messages = messagesFor(chat, panel.system());
  const message = { role: "assistant", content: "", writing: true };
  const view = addAnswer(message);
  const own = chat;
  own.messages.push(message);
  const current = new Answering(message, view);
  answering = current;
  say(panel.problem());
  keep();
  refresh();
  scroll.toEnd();
  const keeper = setInterval(() => own === chat && keep(false), 1000);
  let refused = null;
  try {
    await current.run({ model: picker.value, messages, ...panel.request() });
  } catch (error) {
    refused = error;
  }
  clearInterval(keeper);
  delete message.writing;
  if (answering === current) answering = null;
  if (left) return undefined; // how its end looks then is not how the answer ended
  if (refused) return retryWithKey(own, view, refused);
  store.keep(own);
  refresh(); // also where another chat was opened meanwhile: the button is for both
  if (own === chat) announce(spoken(message));
  return undefined;
}

async function retryWithKey(own, view, refused) {
  if (await askForKey(refused.message)) {
    own.messages.pop();
    view.root.remove();
    if (own === chat) await answer();
    return;
  }
  own.messages.at(-1).error = refused.message;
  view.finish();
  store.keep(own);
  refresh();
}

function spoken(message) {
  if (message.error) return ""; // its own alert says it
  const calls = (message.tool_calls ?? []).map((call) => `Calls ${call.function.name}.`).join(" ");
  const start = message.ended === "cancelled" ? "Stopped." : "Answer:";
  return `${start} ${message.content} ${calls}`.trim();
}

function stop() {
  answering?.stop();
}

function leave() {
  left = true;
  if (answering) store.keep(chat); // with what has come; opened again, it is told as cut off
}

/** Another tab kept the chat `id`, or deleted it. */
function elsewhere(id, kept) {
  if (id !== chat.id) drawList();
  else if (!kept) remove(id);
  else if (answering || editing) chat.id = store.newId(); // both were continued: both stay
  else if (!kept.messages.at(-1)?.writing) show(kept);
}

function regenerate() {
  stop();
  const last = chat.messages.findLastIndex((message) => message.role !== "assistant");
  if (last < 0) return;
  truncate(last + 1);
  answer();
}

function answerCalls(results) {
  for (const result of results) {
    chat.messages.push(result);
    addView(result);
  }
  answer();
}

function truncate(length) {
  chat.messages.length = length;
  while (turns.children.length > length) turns.lastElementChild.remove();
}

function dropFromLastUser() {
  stop();
  truncate(chat.messages.findLastIndex((message) => message.role === "user"));
}

function edit() {
  editing = true;
  input.value = chat.messages.findLast((message) => message.role === "user").content;
  byId("editing").hidden = false;
  fitInput();
  input.focus();
}

function cancelEdit() {
  if (editing) input.value = "";
  editing = false;
  byId("editing").hidden = true;
  fitInput();
}

function startNew() {
  show(store.newChat());
  closeList();
  input.focus();
}

function openFromList(opened) {
  closeList();
  show(opened);
  input.focus();
}

function closeList() {
  if (byId("history").matches(":popover-open")) byId("history").hidePopover();
}

function remove(id) {
  store.forget(id);
  if (id === chat.id) show(store.newChat());
  else refresh();
}

function clearAll() {
  if (!window.confirm("Delete all chats kept in this browser?")) return;
  store.forget(chat.id); // also where nothing of it was kept yet
  store.forgetAll();
  show(store.newChat());
}

/** Asks for the key that the server wants; whether there is one now. */
function askForKey(reason) {
  const dialog = byId("key-dialog");
  byId("key-reason").textContent = reason;
  byId("key").value = storedKey();
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
  });
}

function loadModels() {
  loading ??= askForModels().finally(() => (loading = null));
  return loading;
}

async function askForModels() {
  say("");
  try {
    const names = await models();
    const chosen = store.settings().model;
    picker.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) picker.value = chosen;
    picker.disabled = false;
    if (!names.length) say("The server has no model.");
  } catch (error) {
    if (error.status === 401 && (await askForKey(error.message))) return askForModels();
    say(error.message);
  }
  return undefined;
}

function fitInput() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, window.innerHeight * 0.4)}px`;
}

function pressed(event) {
  const plain = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  // on a phone there is no Shift+Enter: its button sends
  if (!plain || window.matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  if (!answering) submit();
}

function escape(event) {
  if (event.key !== "Escape" || document.querySelector("dialog[open], :popover-open")) return;
  if (answering) stop();
  else if (editing) cancelEdit();
  else return;
  input.focus();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
input.addEventListener("input", fitInput);
input.addEventListener("keydown", pressed);
document.addEventListener("keydown", escape);
byId("cancel-edit").addEventListener("click", () => {
  cancelEdit();
  input.focus();
});
for (const button of document.querySelectorAll(".new-chat"))
  button.addEventListener("click", startNew);
byId("clear").addEventListener("click", clearAll);
byId("open-settings").addEventListener("click", () => byId("settings").showModal());
byId("close-settings").addEventListener("click", () => byId("settings").close());
picker.addEventListener("change", () =>
  store.keepSettings({ ...store.settings(), model: picker.value }),
);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  storeKey(byId("key").value.trim());
  byId("key-dialog").close("given");
});
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close(""));
window.addEventListener("pagehide", leave);
window.addEventListener("pageshow", () => (left = false)); // the browser may bring it back as it was
store.onElsewhere(elsewhere);
for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", () => {
    input.value = button.textContent;
    submit();
  });
}

show(store.chats()[0] ?? store.newChat());
loadModels();
input.focus();
