/** Light or dark: the system's choice, or the one made here, which is remembered. */

import { byId } from "./elements.js";

const NAME = "medusa-playground-theme";

/** @param {Storage | null} storage null where the browser grants none */
export function startTheme(storage) {
  const select = byId("theme");
  const apply = () => {
    document.documentElement.dataset.theme = select.value;
  };
  const known = storage?.getItem(NAME) ?? "auto";
  select.value = ["auto", "light", "dark"].includes(known) ? known : "auto";
  select.addEventListener("change", () => {
    apply();
    storage?.setItem(NAME, select.value);
  });
  apply();
}

/** @returns {Storage | null} */
export function storageOf() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}
