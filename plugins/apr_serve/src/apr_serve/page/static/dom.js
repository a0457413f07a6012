// Building DOM nodes. Text is always a text node: nothing here can turn a string into markup.

/** An element with properties and children: strings become text, null and false nothing. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  append(node, children); // first: with dir=auto, every later child would be looked through anew
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, value);
  }
  return node;
}

export function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  append(node, children);
  return node;
}

/** Copies text; also where the page is not served securely and the clipboard API is missing. */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const focused = document.activeElement;
  const area = element("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!copied) throw new Error("the browser refused");
}

/** A button that copies what `text()` gives when pressed, and says how that went. */
export function copyButton(text, label) {
  const button = element("button", { type: "button", class: "quiet", "aria-label": label }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await copyText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Could not copy";
    }
    announce(button.textContent);
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
  return button;
}

/** Says something to those who listen to the page: the polite live region `#announcer`. */
export function announce(text) {
  const region = document.getElementById("announcer");
  if (!region) return;
  // the same words twice are spoken twice only when the region was empty between
  region.textContent = "";
  requestAnimationFrame(() => (region.textContent = text));
}
