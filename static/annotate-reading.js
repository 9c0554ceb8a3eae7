// Reading two texts side by side: they scroll together, by share of their length.

export const syncPanes = (target) => {
  const panes = [...target.querySelectorAll(".text")];
  const expected = new Map();
  for (const pane of panes) {
    pane.addEventListener(
      "scroll",
      () => {
        if (Math.abs((expected.get(pane) ?? -9) - pane.scrollTop) < 2) return;
        const room = pane.scrollHeight - pane.clientHeight;
        for (const other of panes) {
          if (other === pane) continue;
          const top = room > 0 ? (pane.scrollTop / room) * (other.scrollHeight - other.clientHeight) : 0;
          expected.set(other, Math.round(top));
          expected.delete(pane);
          other.scrollTop = Math.round(top);
        }
      },
      { passive: true },
    );
  }
};

// Scroll by a share of what is in view: the panes where they scroll, else the page.
export const scrollBy = (target, by) => {
  const panes = [...target.querySelectorAll(".text")];
  const tallest = panes.sort((a, b) => b.scrollHeight - a.scrollHeight)[0];
  if (tallest.scrollHeight > tallest.clientHeight + 1) tallest.scrollBy({ top: by * tallest.clientHeight });
  else window.scrollBy({ top: by * innerHeight });
};
