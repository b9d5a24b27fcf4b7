// The start, and which page the address names.
"use strict";

const PAGES = { start, table, lives, map: mapPage, feature, compare, passages, words };
// What the bar leads to: address, page, text, and whether the list of features goes along.
const LINKS = [
  ["", "start", "Start", false],
  ["table", "table", "Features", true],
  ["lives", "lives", "Lives", true],
  ["map", "map", "Map", true],
  ["passages", "passages", "Passages", false],
  ["compare", "compare", "Compare", false],
  ["words", "words", "Words", false],
];

async function begin() {
  theme.start(document.getElementById("theme"));
  const main = document.getElementById("main");
  let site;
  try {
    site = await Site.open("");
  } catch (error) {
    fill(main, h("p", { class: "missing", role: "alert" }, `The atlas cannot be shown: ${error.message}.`));
    return;
  }
  sites.set(new URL("./", document.baseURI).href, Promise.resolve(site));
  document.getElementById("experiment").textContent = shown(site.about.name);
  startTerms(site);
  let page = null;
  let view = null;
  let searching = false; // whether the search field is wanted once its page is there

  async function show() {
    const now = address();
    const name = Object.hasOwn(PAGES, now.page) ? now.page : "start";
    const first = view === null;
    const anew = name !== page;
    if (anew) {
      page = name;
      view = PAGES[name](site);
      fill(main, view.element);
    }
    const params = ofList(now.params);
    fill(document.getElementById("pages"), LINKS.map(([path, key, text, along]) =>
      h("a", { href: hash(path, along ? params : ""), "aria-current": key === name ? "page" : null }, text)));
    try {
      const title = (await view.update()) || view.title;
      document.title = `${shown(title)} · ${shown(site.about.name)} · Ontogeny atlas`;
      if ((anew && !first) || (name === "feature" && document.activeElement === document.body)) {
        window.scrollTo(0, anew ? 0 : window.scrollY);
        view.element.querySelector(searching ? "#search" : "h1")?.focus({ preventScroll: true });
        searching = false;
      }
      if (!first && name === "feature") say(title);
    } catch (error) {
      fill(main, h("p", { class: "missing", role: "alert" }, `This page cannot be shown: ${error.message}.`));
      page = null;
    }
    document.body.dataset.ready = String(Number(document.body.dataset.ready || 0) + 1);
  }

  window.addEventListener("hashchange", show);
  window.addEventListener("recolour", () => {
    page = null; // colours of what is drawn are in its elements
    show();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest?.("input, select, textarea, .scroll")) return;
    if (event.key === "/") {
      event.preventDefault();
      if (page === "table") document.getElementById("search").focus();
      else {
        searching = true;
        location.hash = hash("table", ofList(address().params));
      }
    } else view?.key?.(event);
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address after # is the page's
    main.focus();
  });
  await show();
}

begin();
