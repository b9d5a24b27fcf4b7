// What the words of the atlas mean: told where they stand, and on a page of their own.
"use strict";

/** Definitions by word, with this experiment's own numbers. */
function definitions(site) {
  const { about } = site;
  const share = format.short(about.presence);
  const loss = `${Math.round(100 * (about.kinds_loss ?? 0.5))}%`;
  return {
    feature: "One unit of the dictionary: a direction at every snapshot, and a rule for when it is active. One feature is followed through all snapshots.",
    snapshot: "A checkpoint of the language model, saved at a training step.",
    kind: "What a feature's activation depends on, found by replacing tokens and measuring how much activation is lost. A feature has one kind.",
    "current token": "The activation depends on the token itself: replacing the tokens before it changes little.",
    "previous token": `Replacing the previous token removes at least ${loss} of the activation.`,
    induction: `Replacing what followed earlier copies of the last two tokens removes at least ${loss} of the activation: the feature recognises that text repeats.`,
    context: `Replacing everything before the last two tokens removes at least ${loss} of the activation.`,
    position: "The activation depends on how far the token is from the beginning of the text block.",
    none: "Tested, but no single replacement removes enough of the activation, so the feature has no kind.",
    untested: `Active at fewer of the sampled positions than the test needs${about.kinds_active ? ` (${format.count(about.kinds_active)})` : ""}, and no rule gives it a kind either. It may be of any kind.`,
    class: "The course of a feature's life. Each feature is either present at initialisation or emergent; either may also be transient, reappearing or doubtful.",
    initialisation: `Present at the first snapshot: its strength there is at least ${share} of its largest. Random weights have features too.`,
    emergent: `Not present at the first snapshot: its strength reaches ${share} of its largest later, at its onset.`,
    transient: "No longer present at the last snapshot.",
    reappearing: "Fades and comes back: it has more than one life.",
    doubtful: "A birth or death that the dictionary may have made up: another feature carries the concept on, or the activation can be read where the feature is absent.",
    onset: `The training step at which the feature's strength first reaches ${share} of its largest. 0 for a feature that is present at the first snapshot.`,
    settled: `The first step from which the feature keeps its final direction (cosine ${about.settled_cosine ?? 0.7} or more). A feature can be strong long before it means what it means at the end: the onset is about strength, the settled step about meaning.`,
    strength: "The norm of the feature's decoder at a snapshot: how much it adds there when it is active.",
    peak: "The snapshot at which the feature is strongest.",
    lifetime: "The share of the snapshots at which the feature is present.",
    density: "The share of held-out tokens at which the feature is active.",
    span: "How many tokens, its own included, the feature needs: the shortest piece of text before the position that keeps 90% of the activation when everything earlier is replaced.",
    matched: `A dictionary trained with another seed has the same feature: the cosine with its best match is at least ${about.matched_cosine}. What one seed alone finds may be chance.`,
    trusted: `${about.seeds.length > 1 ? "Matched, not doubtful, and active" : "Not doubtful, and active"} at ${about.start.often} held-out tokens or more: a feature whose life may be spoken of.`,
    attribution: "How much a feature adds to the difference between the logits of the right and the wrong answer of a task, by integrated gradients. Only features whose attribution differs from zero are listed.",
    name: "Given by rule, from what a feature's contexts share and the text seldom has, such as the same previous token. A name accounts for at least half of the activation, or says that it is where the feature is strongest.",
    "unigram level": "The loss of a model that knows only how frequent each token is.",
    "bigram level": "The loss of a model that knows only which token follows which.",
    "turning point": "The step at which the features' directions change most: the cosines between snapshots are high before it and after it, and low across it.",
    dimensionality: "1 where a feature has a direction to itself, 1/k where k features share one.",
    L0: "How many features are active on a token, on average.",
  };
}

const ONE_NAME = { complexity: "span", cosine: "matched", direction: "settled" };

/** A word that tells what it means, when it is pointed at, focused or tapped. */
function term(word, text = word) {
  return h("button", { type: "button", class: "term", "data-term": ONE_NAME[word] || word }, text);
}

/** Show definitions beside whatever carries data-term; one at a time. */
function startTerms(site) {
  const words = definitions(site);
  const tip = h("div", { id: "definition", class: "tip definition", role: "tooltip", hidden: true });
  document.body.append(tip);
  let shownAt = null;
  const hide = () => {
    shownAt?.removeAttribute("aria-describedby");
    shownAt = null;
    tip.hidden = true;
  };
  const show = (event) => {
    // What the keyboard has gone to stays told while the pointer rests elsewhere.
    const focused = event.type === "pointerover" && document.activeElement?.matches("[data-term]:focus-visible") ? document.activeElement : null;
    const one = event.target.closest?.("[data-term]") || focused;
    if (one === shownAt && one) return;
    hide();
    const text = one && words[one.dataset.term];
    if (!text) return;
    fill(tip, h("b", {}, one.dataset.term), " ", text);
    tip.hidden = false;
    shownAt = one;
    one.setAttribute("aria-describedby", "definition");
    const box = one.getBoundingClientRect();
    const width = Math.min(340, document.documentElement.clientWidth - 16);
    tip.style.width = `${width}px`;
    tip.style.left = `${window.scrollX + Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8))}px`;
    const below = box.bottom + tip.offsetHeight + 8 < window.innerHeight || box.top < tip.offsetHeight + 8;
    tip.style.top = `${window.scrollY + (below ? box.bottom + 6 : box.top - tip.offsetHeight - 6)}px`;
  };
  for (const type of ["pointerover", "focusin", "click"]) document.addEventListener(type, show);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  window.addEventListener("hashchange", hide);
}

/** The page of all words. */
function words(site) {
  const element = h("div", { class: "words-page" },
    h("h1", { tabindex: -1 }, "Words"),
    h("p", { class: "note" }, "The same definitions appear when you point at or tap a word with a dotted underline."),
    h("dl", { class: "panel" }, Object.entries(definitions(site)).map(([word, text]) =>
      h("div", {}, h("dt", {}, site.about.kinds.some((kind) => format.name(kind) === word) ? swatch(site, word.replaceAll(" ", "_")) : site.about.classes.includes(word) ? swatch(site, word) : null, word), h("dd", {}, text)))));
  return { element, update: async () => "Words", title: "Words" };
}
