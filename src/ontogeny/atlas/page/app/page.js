// Elements, numbers as text, the address and the theme. No text ever becomes markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
// Controls, and what moves or hides other text; what stands for them has a glyph.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** Text of which every character shows. */
function shown(text) {
  return String(text).replace(UNSEEN, (letter) => {
    const code = letter.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "\u2421" : `\\u{${code.toString(16)}}`;
  });
}

/** An element. Keys of `given` that begin with "on" are listeners; strings become text. */
function h(name, given, ...children) {
  return build(document.createElement(name), given, children);
}

/** An element of SVG. */
function s(name, given, ...children) {
  return build(document.createElementNS(SVG, name), given, children);
}

function build(element, given, children) {
  for (const [key, value] of Object.entries(given || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "vars")
      for (const [name, each] of Object.entries(value)) element.style.setProperty(name, each);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : shown(child));
  }
  return element;
}

function fill(element, ...children) {
  element.replaceChildren();
  build(element, {}, children);
  return element;
}

/** Where a pointer is on an element: [x, y] from its upper left corner. */
function pointIn(element, event) {
  const box = element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

/** Say something to a screen reader. */
function say(text) {
  document.getElementById("said").textContent = shown(text);
}

const format = {
  count: (x) => x.toLocaleString("en-US"),
  /** So many significant digits, without an exponent where that is readable. */
  number: (x, digits = 3, trimmed = false) => {
    if (!Number.isFinite(x)) return "–";
    if (x === 0) return "0";
    const size = Math.abs(x);
    if (size >= 1e6 || size < 1e-4)
      return x.toExponential(digits - 1).replace("e+", "e").replace("-", "−").replace("e-", "e−");
    const places = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
    return x.toLocaleString("en-US", { maximumFractionDigits: places, minimumFractionDigits: trimmed ? 0 : places }).replace("-", "−");
  },
  /** The same for ticks, without zeros at the end. */
  short: (x, digits = 3) => format.number(x, digits, true),
  fixed: (x, places = 2) => (Number.isFinite(x) ? x.toFixed(places).replace("-", "−") : "–"),
  step: (x) => (Number.isFinite(x) ? Math.round(x).toLocaleString("en-US") : "–"),
  percent: (x) => {
    if (!Number.isFinite(x)) return "–";
    const y = 100 * x;
    return `${y >= 10 ? y.toFixed(1) : y >= 1 ? y.toFixed(2) : format.number(y, 2)}%`;
  },
  name: (x) => x.replaceAll("_", " "),
};

// The address

/** {page, rest, params} of the address after #. */
function address(hash = location.hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [page, ...rest] = path.split("/");
  return { page: page || "start", rest, params: new URLSearchParams(query || "") };
}

/** An address's hash; params that are empty are left out. */
function hash(path, params) {
  const left = new URLSearchParams();
  for (const [key, value] of new URLSearchParams(params || ""))
    if (value !== "") left.set(key, value);
  const query = left.toString().replaceAll("%2C", ",").replaceAll("%2F", "/");
  return `#/${path}${query ? `?${query}` : ""}`;
}

/** Change some of the address's params, without a step to go back to unless `step`. */
function change(changes, step = false) {
  const { page, rest, params } = address();
  for (const [key, value] of Object.entries(changes)) params.set(key, value ?? "");
  const path = [page === "start" ? "" : page, ...rest].filter(Boolean).join("/");
  const to = hash(path, params);
  if (to === location.hash) return;
  if (step) location.hash = to;
  else {
    history.replaceState(null, "", to);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  }
}

// The theme

const theme = {
  media: window.matchMedia("(prefers-color-scheme: dark)"),
  chosen: null,
  get dark() {
    return this.chosen ? this.chosen === "dark" : this.media.matches;
  },
  start(button) {
    try {
      this.chosen = localStorage.getItem("ontogeny-theme");
    } catch {
      this.chosen = null; // a browser that keeps nothing for files
    }
    button.addEventListener("click", () => {
      this.chosen = this.dark ? "light" : "dark";
      try {
        localStorage.setItem("ontogeny-theme", this.chosen);
      } catch {
        // for this visit only
      }
      this.apply(button);
    });
    this.media.addEventListener("change", () => this.apply(button));
    this.apply(button);
  },
  apply(button) {
    document.documentElement.dataset.theme = this.dark ? "dark" : "light";
    button.textContent = this.dark ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${this.dark ? "light" : "dark"} colours`);
    window.dispatchEvent(new Event("recolour"));
  },
};

/** A colour of the figures, lighter where the page is dark; only #rrggbb is taken. */
function colour(value) {
  if (!/^#[0-9a-f]{6}$/i.test(value)) return "#888888";
  if (!theme.dark) return value;
  const parts = [1, 3, 5].map((i) => parseInt(value.slice(i, i + 2), 16));
  return `rgb(${parts.map((x) => Math.round(x + (255 - x) * 0.28)).join(",")})`;
}

/** A colour that the style sheet names. */
function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Draw in a place again whenever its width or the theme changes. */
function responsive(place, draw) {
  let width = 0;
  const again = () => {
    if (!place.isConnected) return;
    const now = Math.floor(place.clientWidth);
    if (now > 0) draw((width = now));
  };
  new ResizeObserver(() => Math.floor(place.clientWidth) !== width && again()).observe(place);
  const recolour = () => (place.isConnected ? again() : window.removeEventListener("recolour", recolour));
  window.addEventListener("recolour", recolour);
  return again;
}

/** The mark of a kind or class: its colour in a shape of its own. */
function swatch(site, name) {
  return h("span", { class: `swatch is-${name}`, "aria-hidden": "true", vars: { "--c": colour(site.about.colours[name]) } });
}

/** Give the browser a file to keep. */
function download(name, type, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Rows as the text of a CSV file. */
function csv(head, rows) {
  const cell = (value) => {
    const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

/** A group of buttons of which one is pressed. */
function choice(label, options, value, chosen) {
  const buttons = options.map(([key, text]) =>
    h("button", {
      type: "button",
      "aria-pressed": String(key === value),
      onclick: () => {
        buttons.forEach((button, i) =>
          button.setAttribute("aria-pressed", String(options[i][0] === key)));
        chosen(key);
      },
    }, text));
  return h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

/** A select with a label before it. */
function select(label, options, value, chosen, given = {}) {
  const list = h("select", { onchange: () => chosen(list.value), ...given },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
  return h("label", { class: "field" }, h("span", {}, label), list);
}
