// What the browser keeps: chats and settings, on this device only.
const CHAT = "apr.chat.";
const SETTINGS = "apr.settings";
const forgotten = new Set(); // ids: an answer that is still ending does not bring its chat back

/** A chat: {id, updated, messages}, messages as the API has them plus what is shown with them. */
export function newChat() {
  return { id: newId(), updated: Date.now(), messages: [] };
}

export function newId() {
  return crypto.randomUUID?.() ?? String(Date.now() + Math.random());
}

/** Calls `changed(id, chat)` when another tab kept a chat, without one when it deleted it. */
export function onElsewhere(changed) {
  window.addEventListener("storage", ({ key, newValue }) => {
    if (key?.startsWith(CHAT)) changed(key.slice(CHAT.length), newValue && read(key));
  });
}

/** All chats, latest first. What cannot be read is passed over. */
export function chats() {
  const found = [];
  for (const key of keys()) {
    const chat = read(key);
    if (chat?.id && Array.isArray(chat.messages)) found.push(chat);
  }
  return found.sort((one, other) => other.updated - one.updated);
}

/** Keeps a chat; when there is no room, the oldest others go. Returns whether it is kept. */
export function keep(chat) {
  if (!chat.messages.length || forgotten.has(chat.id)) return true;
  const others = chats().filter((other) => other.id !== chat.id);
  for (;;) {
    if (write(CHAT + chat.id, chat)) return true;
    const oldest = others.pop();
    if (!oldest) return false;
    drop(oldest.id);
  }
}

export function forget(id) {
  forgotten.add(id);
  drop(id);
}

function drop(id) {
  try {
    localStorage.removeItem(CHAT + id);
  } catch {
    // nothing was kept
  }
}

export function forgetAll() {
  for (const chat of chats()) forget(chat.id);
}

export function titleOf(chat) {
  const first = chat.messages.find((message) => message.role === "user")?.content ?? "";
  const line = first.trim().split("\n")[0];
  return (line.length > 60 ? `${line.slice(0, 59)}…` : line) || "Empty chat";
}

export function settings() {
  return read(SETTINGS) ?? {};
}

export function keepSettings(values) {
  write(SETTINGS, values);
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch {
    return [];
  }
}

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
