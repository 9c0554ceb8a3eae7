// Keys by what they write, so that they are where the person's layout has them.

// The text field or the control that a key press belongs to, if any.
export const typing = (target) => Boolean(target.closest?.("textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])"));
export const acting = (target) => Boolean(target.closest?.("a, button, summary, select"));

// The key's letter or digit. Where the layout writes something else (Cyrillic letters; digits that need Shift, as on a
// French keyboard), the place of the key counts, unless what it writes is a key of ours itself.
export const keyOf = (event, known) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (known(key) || event.shiftKey || event.key.length !== 1) return key;
  const [, digit] = /^Digit(\d)$/.exec(event.code) ?? [];
  if (digit) return digit;
  const [, letter] = /^Key([A-Z])$/.exec(event.code) ?? [];
  return letter && !/[a-z]/.test(key) ? letter.toLowerCase() : key;
};
