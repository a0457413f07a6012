// The newest text stays in view while the reader is at the end, and only then.
const NEAR = 64; // pixels from the end that still count as the end

export function follow(scroller, button) {
  let following = true;

  function atEnd() {
    return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
  }

  function toEnd() {
    following = true;
    scroller.scrollTop = scroller.scrollHeight;
    button.hidden = true;
  }

  function stop() {
    following = false;
  }

  scroller.addEventListener("scroll", () => {
    following = atEnd();
    button.hidden = following;
  });
  // a wheel turned upwards wins against text that arrives in the same moment
  scroller.addEventListener("wheel", (event) => event.deltaY < 0 && stop(), { passive: true });
  scroller.addEventListener("touchmove", stop, { passive: true });
  button.addEventListener("click", toEnd);
  const grown = new ResizeObserver(() => {
    if (following) toEnd();
    else button.hidden = atEnd();
  });
  grown.observe(scroller.firstElementChild);
  grown.observe(scroller);
  return { toEnd };
}
