"""What is wrong with a page for those who see badly, listen, or have a small screen."""

from __future__ import annotations

CONTRAST = """() => {
  // colours as the browser paints them, whatever function they were written with
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const luminance = (color) => color.slice(0, 3)
    .map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgba(getComputedStyle(node).backgroundColor);
      if (color[3] > 0.99) return color;
    }
    return rgba("Canvas");
  };
  const faults = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let checked = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const ink = rgba(node instanceof SVGElement ? style.fill : style.color);
    const [one, other] = [luminance(ink), luminance(behind(node))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    checked++;
    if (ratio < (large ? 3 : 4.5)) {
      faults.push(`${walker.currentNode.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
    }
  }
  if (checked < 10) faults.push(`only ${checked} pieces of text were looked at`);
  return faults;
}"""

NAMELESS = """() => {
  const named = (node) => node.ariaLabel || node.labels?.length || node.textContent.trim() ||
    document.getElementById(node.getAttribute("aria-labelledby"))?.textContent;
  const wanted = "button, a, input, select, textarea, [role], summary, section, aside, nav, dialog";
  const quiet = (node) => node.closest("[aria-hidden=true]") || node.ariaLive;
  return [...document.querySelectorAll(wanted)]
    .filter((node) => !quiet(node) && !named(node) && node.getAttribute("role") !== "status")
    .filter((node) => node.getAttribute("role") !== "alert")
    .map((node) => node.outerHTML.slice(0, 120));
}"""

REPEATED = """() => {
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  return ids.filter((id, index) => ids.indexOf(id) !== index);
}"""


def low_contrasts(page):
    """Texts below WCAG's AA with their contrast."""
    return page.evaluate(CONTRAST)


def nameless(page):
    """What a screen reader cannot name."""
    return page.evaluate(NAMELESS)


def repeated_ids(page):
    return page.evaluate(REPEATED)


def scrolls_sideways(page):
    return page.evaluate("""() => ["html", "main", "#scroller", "dialog[open]"]
        .map((name) => document.querySelector(name))
        .some((node) => node && node.scrollWidth > node.clientWidth)""")
