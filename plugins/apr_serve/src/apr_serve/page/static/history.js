// The list of chats at the side.
import { element } from "./dom.js";
import * as store from "./store.js";

/** Draws the list; `actions`: open(chat) and removed(id). */
export function drawHistory(list, current, actions) {
  const chats = store.chats();
  const focused = document.activeElement?.closest?.("[data-chat]")?.dataset.chat;
  list.replaceChildren(...chats.map((chat) => row(chat, chat.id === current, actions)));
  if (focused) list.querySelector(`[data-chat="${CSS.escape(focused)}"] .open`)?.focus();
  document.getElementById("no-chats").hidden = chats.length > 0;
  document.getElementById("clear").hidden = chats.length === 0;
}

function row(chat, isCurrent, actions) {
  const title = store.titleOf(chat);
  const open = element(
    "button",
    {
      type: "button",
      class: "open",
      "aria-current": isCurrent ? "page" : undefined,
      onclick: () => actions.open(chat),
    },
    title,
  );
  const remove = element(
    "button",
    {
      type: "button",
      class: "remove",
      "aria-label": `Delete chat: ${title}`,
      onclick: () => actions.removed(chat.id),
    },
    "×",
  );
  return element("li", { "data-chat": chat.id }, open, remove);
}
