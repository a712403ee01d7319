// Colours of requests, and the theme.

import { say, set } from "./words.js";

export const COLOURS = 8;
const THEMES = ["auto", "light", "dark"];
const KEPT = "cdsp-theme";

/** The class that colours a request; neighbours in order of arrival differ. */
export const colour = (n) => `c${(n * 3) % COLOURS}`;

/** A colour of the theme in force, as a canvas takes it. */
export function value(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Let a button choose the theme; `changed` hears of every change, the system's too. */
export function themes(button, changed) {
  let chosen = read();
  const apply = () => {
    set(document.documentElement, { "data-theme": chosen === "auto" ? null : chosen });
    say(button, `Theme: ${chosen}`);
    changed();
  };
  button.addEventListener("click", () => {
    chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
    try {
      localStorage.setItem(KEPT, chosen);
    } catch {
      // Without storage the choice lasts as long as the page.
    }
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  apply();
}

function read() {
  try {
    const kept = localStorage.getItem(KEPT);
    return THEMES.includes(kept) ? kept : "auto";
  } catch {
    return "auto";
  }
}
