// Numbers, times and plans in words, and the making of elements.
// Text of clients enters the page here only, as text nodes.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with properties and children; strings become text. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  set(made, props);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The same in SVG. */
export function svg(tag, props = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  set(made, props);
  made.append(...children);
  return made;
}

/** Set attributes that differ; null takes one away. */
export function set(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) {
      if (element.hasAttribute(name)) element.removeAttribute(name);
    } else {
      const text = value === true ? "" : String(value);
      if (element.getAttribute(name) !== text) element.setAttribute(name, text);
    }
  }
  return element;
}

/** Set an element's text if it differs. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const WHOLE = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });

/** 12,345 */
export const whole = (number) => WHOLE.format(number);

/** 1.75 s, 0.04 s, 92 s, 12 min */
export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value >= 600) return `${Math.round(value / 60)} min`;
  if (value >= 100) return `${Math.round(value)} s`;
  return `${value.toFixed(value >= 10 ? 1 : 2)} s`;
}

/** Rates: three digits that count. */
export function rate(value) {
  if (value >= 100) return whole(value);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** [0, 1, 2, 5] as 0-2,5; the order is kept. */
export function ranges(instances) {
  const runs = [];
  for (const i of instances) {
    const last = runs[runs.length - 1];
    if (last && i === last[1] + 1) last[1] = i;
    else runs.push([i, i]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}

/** Chunks as 2,734@1 → 5,266@2 */
export function plan(chunks) {
  return chunks.map((chunk) => `${whole(chunk.tokens)}@${chunk.instances.length}`).join(" → ");
}

/** "instance 1", "instances 0–3" */
export const named = (instances) =>
  `instance${instances.length > 1 ? "s" : ""} ${ranges(instances)}`;

/** A name cut to so many characters. */
export const cut = (text, most) =>
  text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1))}…`;

/** "layer 3 of 8" */
export const layerWords = (layer, layers) => `layer ${layer} of ${layers}`;
