"""The atlas in a browser, from disk: every page, by mouse and keys, light and dark, on a phone."""

from __future__ import annotations

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from browsing import Looked
from conftest import HOSTILE, RESULTS, ROOT

from ontogeny.atlas import gather, start
from ontogeny.corpus.pieces import visible

DEFAULT = ROOT / "results/default"


@pytest.fixture(scope="module")
def table(analysed) -> pd.DataFrame:
    """What the site shows, from the tables themselves."""
    features = analysed.table("features")
    kinds = analysed.table("kinds")[["feature", "kind", "cause"]]
    found = features[features["alive"]].merge(kinds, on="feature", how="left")
    found = found.fillna({"kind": "none", "cause": "untested"}).reset_index(drop=True)
    found["kind"] = found["kind"].mask(
        (found["kind"] == "none") & (found["cause"] == "untested"), "untested"
    )
    found["trusted"] = gather.gather(analysed).table["trusted"]
    span = analysed.table("span")
    return found.merge(
        span.loc[span["run"] == "replaced", ["feature", "span"]], on="feature", how="left"
    )


def usual(table: pd.DataFrame) -> pd.DataFrame:
    """The order of a list for which none is chosen."""
    late = np.where(table["initialisation"], 2, np.where(table["trusted"], 0, 1))
    return table.assign(late=late).sort_values(["late", "onset_step", "settled_step", "feature"])


def test_the_start_tells_the_experiment(look, table, analysed):
    here = look()
    summary = dict(zip(here.text(".facts dt"), here.text(".facts dd"), strict=True))
    fidelity = [analysed.table("fidelity", seed=seed) for seed in (0, 1)]
    explained, _, of = summary["explained variance"].partition(", ")
    assert of == "mean of 2 seeds"
    assert float(explained) == pytest.approx(
        pd.concat(fidelity)["explained_variance"].mean(), abs=6e-4
    )
    assert summary["snapshots"] == "5, steps 0 to 40"
    dead = analysed.table("features")["alive"].size
    assert summary["dictionary"] == f"batchtopk, {len(table)} living features of {dead}"
    kinds = dict(zip(here.text(".census .term")[1:], here.text(".census .much"), strict=False))
    assert int(kinds["current token"]) == (table["kind"] == "current_token").sum()
    assert int(kinds["untested"]) == (table["kind"] == "untested").sum()
    here.page.click("figure:has(h2:text-is('Training')) summary")
    phases = analysed.table("phases")
    here.page.locator("figure:has(h2:text-is('Training')) .numbers td").first.wait_for()
    rows = here.text("figure:has(h2:text-is('Training')) .numbers td")
    np.testing.assert_allclose([float(x) for x in rows], phases["loss"], atol=6e-4)
    assert "unigram" in here.page.text_content("figure:has(h2:text-is('Training')) .onplot")
    transient = here.page.locator(".census a.much[aria-label*=' transient ']")
    here.after(transient.click)
    assert here.count() == table["transient"].sum()


def test_the_start_names_features_of_each_phase(look, table, analysed):
    here = look()
    sections = here.page.locator(".phase").all()
    assert sections[0].locator("h2").inner_text().startswith("Present at the first snapshot")
    by = table.set_index("feature")
    store = analysed.contexts()
    seen = 0
    for section in sections:
        for row in section.locator("tbody tr").all():
            number = int(row.locator("th").inner_text())
            assert row.locator(".of-kind").inner_text() == by["kind"][number].replace("_", " ")
            onset = row.locator(".of-onset").inner_text().replace(",", "")
            assert int(onset) == round(by["onset_step"][number])
            top = store.feature(number).top[0]
            own = visible(top.texts[top.offset - top.start])
            assert row.locator("mark").text_content() == re.sub(" {4,}", "   ", own)
            assert row.locator("svg.spark path").count() == 2
            seen += 1
    assert seen > 5
    lead = here.page.inner_text(".lead")
    strengths = analysed.table("strengths")
    at_first = strengths[strengths["step"] == analysed.steps[0]].set_index("feature")
    weak = table["feature"].map(at_first["normalised_strength"]) <= start.WEAK
    best = table[table["emergent"] & table["trusted"] & weak].sort_values("onset_step")
    if len(best):
        assert f"Feature {best['feature'].iloc[0]} " in lead
        assert f"appears at step {round(best['onset_step'].iloc[0])} " in lead
    else:
        assert "No emergent feature is weak at first, found again in another seed" in lead
    here.after(sections[0].locator("p.note a").click)
    assert here.count() == table["initialisation"].sum()


def test_words_tell_what_they_mean_where_they_stand(look):
    here = look()
    tip = here.page.locator("#definition")
    assert not tip.is_visible()
    here.page.hover(".census .term:text-is('untested')")
    assert "fewer of the sampled positions than the test needs (" in tip.inner_text()
    here.page.keyboard.press("Escape")
    assert not tip.is_visible()
    here.page.focus(".census .term:text-is('emergent')")
    assert "Not present at the first snapshot" in tip.inner_text()
    assert here.page.evaluate(
        "document.activeElement.getAttribute('aria-describedby')"
    ) == tip.get_attribute("id")
    here.after(here.page.click, "nav a:has-text('Words')")
    assert not tip.is_visible()
    told = dict(zip(here.text("main dt"), here.text("main dd"), strict=True))
    assert "its strength there is at least 0.5 of its largest" in told["initialisation"]
    for hash_ in ("#/", "#/table", "#/lives", "#/map"):
        here.go(hash_)
        words = here.page.eval_on_selector_all(
            "[data-term]", "all => all.map((one) => one.dataset.term)"
        )
        assert set(words) - {"feature"} <= set(told)


def test_the_lives_of_all_are_one_chart(look, table):
    here = look("#/lives")
    canvas = here.page.locator("canvas.map")
    some = usual(table)
    assert here.text(".selection b") == [str(len(some))]
    canvas.focus()
    here.page.keyboard.press("0")
    before = canvas.screenshot()
    for key in ("+", "+", "ArrowDown"):
        here.page.keyboard.press(key)
    assert canvas.screenshot() != before
    here.page.keyboard.press("0")
    assert canvas.screenshot() == before
    box = canvas.bounding_box()
    rows = box["height"] - 52  # its margins
    wanted = [0, len(some) // 2, len(some) - 1]
    for row in wanted:
        spot = {"x": 60, "y": 18 + (row + 0.5) * rows / len(some)}
        canvas.hover(position=spot)
        assert here.text(".lives-page .tip b") == [f"Feature {some['feature'].iloc[row]}"]
    here.after(lambda: canvas.click(position=spot))
    assert here.text("h1") == [f"Feature {some['feature'].iloc[-1]}"]


def test_lists_and_plots_can_be_kept_as_files(look, table, analysed):
    here = look("#/table?class=transient&sort=-density")
    with here.page.expect_download() as told:
        here.page.click("button:has-text('CSV')")
    kept = pd.read_csv(told.value.path())
    wanted = table[table["transient"]].sort_values("density", ascending=False, kind="stable")
    assert kept["feature"].tolist() == wanted["feature"].tolist()
    np.testing.assert_allclose(kept["density"], wanted["density"], rtol=1e-6)
    np.testing.assert_allclose(kept["onset"], wanted["onset_step"], rtol=1e-6)
    here.go(f"#/feature/{table['feature'][0]}")
    here.page.click("figure:has(h2:text-is('Strength')) summary")
    with here.page.expect_download() as told:
        here.page.click("figure:has(h2:text-is('Strength')) button:has-text('SVG')")
    drawn = ElementTree.parse(told.value.path()).getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    line = drawn.find(".//{*}path[@class='line']")
    assert line.get("stroke").startswith("rgb(")
    with here.page.expect_download() as told:
        here.page.click("figure:has(h2:text-is('Strength')) button:has-text('CSV')")
    assert pd.read_csv(told.value.path())["step"].tolist() == analysed.steps


def test_files_are_read_when_they_are_needed(look, table):
    def data(here: Looked) -> list[str]:
        return sorted(u.partition("/data/")[2] for u in here.asked if "/data/" in u)

    here = look("#/")
    assert data(here) == ["experiment.js", "features.js"]
    here.after(here.page.click, "nav a:has-text('Features')")
    assert data(here) == ["curves/0.js", "experiment.js", "features.js", "text/0.js"]
    here.after(here.page.click, "tbody th a >> nth=0")
    assert len(data(here)) == 6
    assert {"text/0.js", "words.js"} < set(data(here))


def test_from_a_web_server(browser, sites, table):
    handler = partial(Quiet, directory=str(sites[0].parents[1]))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        page = browser.new_page()
        asked: list[str] = []
        faults: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: faults.append(m.text))
        here = Looked(page, sites[0], faults, asked)
        page.goto(f"{home}hostile/atlas/#/compare?other=../../tiny/atlas")
        here.wait(0)
        assert here.text("table.wide thead th") == ["", "hostile", "tiny"]
        here.after(page.click, "nav a:has-text('Features')")
        assert here.count() == len(table)
        page.close()
        server.shutdown()
    assert all(url.startswith((home, "data:")) for url in asked)
    assert faults == []


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_rectangle_on_the_map_goes_to_the_table(look, table):
    here = look("#/map?x=lifetime&y=density")
    box = here.page.locator("canvas.map").bounding_box()
    x, y = box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.05
    here.page.mouse.move(x, y)
    here.page.mouse.down()
    here.page.mouse.move(x + 80, y + 80)
    here.page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.7)
    ready = here.ready()
    here.page.mouse.up()
    here.wait(ready)
    chosen = int(here.text(".selection b")[0])
    link = here.page.url
    low, high = map(float, re.search(r"density=([\d.e-]+)\.\.([\d.e-]+)", link).groups())
    first, last = map(float, re.search(r"lifetime=([\d.]+)\.\.([\d.]+)", link).groups())
    some = table[table["density"].between(low, high) & table["lifetime"].between(first, last)]
    assert 0 < chosen == len(some) < len(table)
    assert here.page.locator(".over .brush").count() == 1
    here.after(here.page.click, ".selection a.button")
    assert here.count() == chosen
    assert here.text("tbody th") == [str(i) for i in usual(some)["feature"]][:50]
    # The link alone brings the same view back.
    again = look(f"#{here.page.url.partition('#')[2]}")
    assert again.text("tbody th") == here.text("tbody th")
    assert again.text(".chips a") == here.text(".chips a")


def test_the_map_zooms_and_opens_a_feature(look, table):
    here = look("#/map?x=density&y=strength")
    canvas = here.page.locator("canvas.map")
    before = canvas.screenshot()
    canvas.focus()
    for key in ("+", "+", "ArrowRight"):
        here.page.keyboard.press(key)
    assert canvas.screenshot() != before
    here.page.keyboard.press("0")
    assert canvas.screenshot() == before
    spot = here.page.evaluate("""() => {
        const box = document.querySelector("canvas.map").getBoundingClientRect();
        return [box.left, box.top, box.width, box.height];
    }""")
    left, top, width, height = spot
    for i in range(2000):  # somewhere on the map there is a point
        x, y = 60 + (i * 37) % (width - 80), 20 + (i * 53) % (height - 70)
        here.page.mouse.move(left + x, top + y)
        if "over-point" in (canvas.get_attribute("class") or ""):
            break
    number = re.search(r"Feature (\d+)", here.text(".tip")[0])[1]
    here.page.mouse.down()
    ready = here.ready()
    here.page.mouse.up()
    here.wait(ready)
    assert f"#/feature/{number}" in here.page.url
    assert here.text("h1") == [f"Feature {number}"]


def test_the_table_shows_sorts_and_filters(look, table):
    here = look("#/table")
    assert here.count() == len(table)
    assert here.text("tbody th") == [str(i) for i in usual(table)["feature"][:50]]
    here.after(here.page.click, "th.col-density button")
    by = table.sort_values("density", ascending=False, kind="stable")
    assert here.page.get_attribute("th.col-density", "aria-sort") == "descending"
    shown = [float(x.rstrip("%")) / 100 for x in here.text("tbody .col-density")]
    np.testing.assert_allclose(shown, by["density"][:50], rtol=6e-3)
    for name, column in (("lifetime", "lifetime"), ("cosine", "matched_cosine")):
        values = [float(x.replace("–", "nan")) for x in here.text(f"tbody .col-{name}")]
        np.testing.assert_allclose(values, by[column][:50], atol=6e-3)
    spans = [np.nan if x == "–" else float(x) for x in here.text("tbody .col-complexity")]
    np.testing.assert_allclose(spans, by["span"][:50], rtol=6e-3)
    here.after(here.page.click, "text=next ›")
    assert here.text("tbody th") == [str(i) for i in by["feature"][50:]]
    here.after(here.page.click, ".toggles button:has-text('transient')")
    assert here.count() == table["transient"].sum()
    here.page.click(".ranges summary")
    least = here.page.locator("fieldset:has-text('density') input").first
    least.fill("0.02")
    here.after(least.press, "Enter")
    some = by[by["transient"] & (by["density"] >= 0.02)]
    assert here.text("tbody th") == [str(i) for i in some["feature"]][:50]
    here.after(here.page.click, ".chips a:has-text('transient')")
    assert here.count() == (table["density"] >= 0.02).sum()


def test_the_table_orders_by_attribution(look, table, analysed):
    every = analysed.table("attribution")
    every = every[every.groupby("feature")["told"].transform("any")]
    largest = every[every["feature"].isin(table["feature"])].groupby("feature")["attribution"]
    wanted = largest.apply(lambda x: x[x.abs().idxmax()])
    here = look("#/table")
    here.after(here.page.select_option, "#task", "induction")
    names, values = here.text("tbody th"), here.text("tbody tr td:nth-last-child(2)")
    found = {int(n): float(x.replace("−", "-")) for n, x in zip(names, values, strict=True)}
    assert here.count() == len(wanted)
    sizes = np.abs(list(found.values()))
    assert (np.diff(sizes) <= 1e-3 * sizes[0]).all()
    for feature, value in found.items():
        assert value == pytest.approx(wanted[feature], rel=6e-3), feature


def test_search_looks_at_contexts_and_promoted_tokens(look, table, analysed):
    store = analysed.contexts()
    word = visible(HOSTILE[0])[1:7]  # script
    wanted = []
    for number in table["feature"]:
        f = store.feature(int(number))
        text = [" ".join(visible(t).strip() for t, _, _ in f.lens[-1].promoted)]
        for context in f.top[:4]:
            at = context.offset - context.start
            text.append("".join(visible(t) for t in context.texts[max(0, at - 12) : at + 5]))
        if any(word in each.lower() for each in text):
            wanted.append(str(number))
    here = look("#/")
    here.after(here.page.keyboard.press, "/")
    assert here.page.evaluate("document.activeElement.id") == "search"
    here.after(here.page.keyboard.type, word.upper())
    assert 0 < here.count() == len(wanted)
    assert len(here.text("tbody th")) == min(50, len(wanted))
    assert set(here.text("tbody th")) <= set(wanted)
    assert here.page.evaluate("document.activeElement.id") == "search"
    here.after(here.page.fill, "#search", "no such text")
    assert here.text("tbody td") == ["No feature matches. Remove a filter."]


def test_search_puts_the_best_match_first(look, table, analysed):
    store = analysed.contexts()
    word = visible(HOSTILE[3])  # a token of its own
    exact = [
        str(number)
        for number in table["feature"]
        if any(c.texts[c.offset - c.start] == HOSTILE[3] for c in store.feature(number).top[:4])
    ]
    here = look("#/table")
    here.after(here.page.fill, "#search", word)
    found = here.text("tbody th")
    assert 0 < len(exact) < here.count()
    assert sorted(found[: len(exact)], key=int) == exact
    for row in here.page.locator("tbody tr").all()[: len(exact)]:
        assert row.locator("mark.hit").first.text_content() == word
    for row in here.page.locator("tbody tr").all()[len(exact) : 50]:
        assert word in "".join(row.locator(".hit").all_text_contents())
    number = str(table["feature"].iloc[-1])
    here.after(here.page.fill, "#search", number)
    assert here.text("tbody th")[0] == number


def test_the_table_filters_by_what_another_seed_has(look, table, analysed):
    here = look("#/table")
    least = analysed.settings.analysis.matched_cosine
    here.after(here.page.select_option, "#matched", "yes")
    assert here.count() == (table["matched_cosine"] >= least).sum()
    here.after(here.page.select_option, "#matched", "no")
    assert here.count() == (table["matched_cosine"] < least).sum()
    onset = here.page.locator("fieldset:has-text('onset') input").first
    onset.fill("1")
    here.after(onset.press, "Enter")
    some = (table["matched_cosine"] < least) & (table["onset_step"] >= 1)
    assert here.count() == some.sum()


def test_hostile_text_shows_as_text(look, table, analysed):
    store = analysed.contexts()
    number = next(
        int(i) for i in table["feature"]
        if {HOSTILE[0], HOSTILE[4]} <= {t for c in store.feature(int(i)).top for t in c.texts}
    )  # fmt: skip
    here = look(f"#/feature/{number}?q=%3Cscript%3E%00")
    top = store.feature(number).top
    lines = here.page.locator(".contexts .lines").first.locator("li .line-of-text")
    for line, context in zip(lines.all(), top, strict=True):
        assert line.text_content() == "".join(visible(text) for text in context.texts)
        tokens = line.locator(".token").all_text_contents()
        assert tokens == [visible(text) for text in context.texts]
    assert "<script>alert(1)</script>" in here.page.locator(".contexts").inner_text()
    assert "␀" in here.text(".chips a")[0]
    for tag in ("script[src=x]", "img", "b[onerror]", "main script", "[onerror]"):
        assert here.page.locator(tag).count() == 0, tag
    assert here.page.locator("script").count() == here.page.locator("head script").count()


def test_a_features_page_has_the_tables_numbers(look, table, analysed):
    crosscoder = analysed.crosscoder()
    row = table[table["matched_cosine"] >= analysed.settings.analysis.matched_cosine].iloc[-1]
    number = int(row["feature"])
    here = look(f"#/feature/{number}")
    facts = dict(zip(here.text(".facts dt"), here.text(".facts dd"), strict=True))
    assert facts["kind"] == row["kind"].replace("_", " ")
    assert facts["peak"] == f"snapshot {row['peak_snapshot_index']}, step {row['peak_step']}"
    assert f"seed 1 has it as feature {row['partner']}" in facts["matched"]
    assert f"cosine {row['matched_cosine']:.2f}" in facts["matched"]
    for summary in here.page.locator("figure .numbers summary").all():
        summary.click()

    def numbers(title: str) -> np.ndarray:
        cells = here.text(f"figure:has(h2:text-is('{title}')) .numbers td")
        each = [float(x.replace("−", "-").replace(",", "").replace("–", "nan")) for x in cells]
        return np.array(each).reshape(len(analysed.steps), -1)

    partner = analysed.crosscoder(seed=1).strength[int(row["partner"])]
    own = crosscoder.strength[number]
    np.testing.assert_allclose(numbers("Strength"), np.c_[own, partner], rtol=1e-3)
    W = crosscoder.W_dec[number].numpy()
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    shown = numbers("Direction")
    there = ~np.isnan(shown)
    assert there.sum() > len(W)
    np.testing.assert_allclose(shown[there], (unit @ unit.T)[there], atol=0.01)
    assert np.nanmax(numbers("Dimensionality")) <= 1
    store = analysed.contexts().feature(number)
    values = [float(x) for x in here.text(".contexts .lines >> nth=0 >> .value")]
    np.testing.assert_allclose(values, [c.value for c in store.top], rtol=6e-3)
    shades = here.page.locator(".contexts .lines").first.locator("li").first.locator(".token")
    largest = max(c.value for c in (*store.top, *store.quantiles))
    styles = shades.evaluate_all("all => all.map(x => x.style.getPropertyValue('--a') || '0')")
    wanted = np.nan_to_num(store.top[0].activations) / largest
    np.testing.assert_allclose([float(x) for x in styles], wanted, atol=4e-3)
    peak = here.page.locator(".lens").first.locator("td.at-peak").all_inner_texts()
    assert [x.strip() for x in peak] == [
        visible(t).replace(" ", "␣") for t, _, _ in store.lens[-1].promoted
    ]
    assert "snakemake --cores 1 atlas" in here.text(".command")[0]


def test_keys_walk_the_list(look, table):
    some = table[table["transient"]].sort_values("onset_step", kind="stable")["feature"]
    order = table[table["transient"]].sort_values(["density", "feature"], ascending=[False, True])
    first, second, third = (int(i) for i in order["feature"][:3])
    here = look("#/table?class=transient&sort=-density")
    assert len(some) == here.count()
    here.after(here.page.click, "tbody th a >> nth=0")
    assert here.text("h1") == [f"Feature {first}"]
    assert here.text(".walk span >> nth=-1") == [f"1 of {len(some)}"]
    for key, wanted in (("Right", second), ("Right", third), ("Left", second)):
        here.after(here.page.keyboard.press, f"Arrow{key}")
        assert here.text("h1") == [f"Feature {wanted}"]
        assert here.page.evaluate("document.activeElement.tagName") == "H1"
    assert here.page.inner_text("#said") == f"Feature {second}"
    here.after(here.page.go_back)
    assert here.text("h1") == ["Features"]


def test_everything_is_reached_with_the_tab_key(look):
    here = look("#/table")
    here.page.keyboard.press("Tab")
    assert here.page.evaluate("document.activeElement.className") == "skip"
    outline = here.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    here.page.keyboard.press("Enter")
    assert here.page.evaluate("document.activeElement.id") == "main"
    seen = set()
    for _ in range(40):
        here.page.keyboard.press("Tab")
        seen.add(here.page.evaluate(
            "document.activeElement.id || document.activeElement.closest('th')?.className "
            "|| document.activeElement.textContent"))  # fmt: skip
    assert {"search", "task", "transient", "More ranges"} <= seen
    assert any("col-density" in one for one in seen)


@pytest.mark.parametrize(
    "page", ["", "table", "lives", "map", "words", "feature/{}", "compare?a={}&b={}"]
)
def test_everything_has_a_name_and_pictures_a_table(look, table, page):
    here = look(f"#/{page.format(*table['feature'][:2])}")
    unnamed = here.page.evaluate("""() =>
        [...document.querySelectorAll("button, a, input, select, [role=img], [role=region]")]
        .filter((one) => one.offsetParent && !(
            one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length
            || one.title))
        .map((one) => one.outerHTML)""")
    assert unnamed == []
    assert here.page.locator("main h1").count() == 1
    for one in here.page.locator("figure:has(svg[role=img])").all():
        assert one.locator("details.numbers").count() == 1
    assert here.page.locator("html[lang=en] main#main").count() == 1


def test_what_was_not_analysed_is_absent_with_a_sentence(look, sites, finished):
    here = look("#/table", site=sites[1])
    assert "contexts is not among its analyses." in here.page.inner_text("main")
    here.after(here.page.click, "tbody th a >> nth=0")
    told = here.page.inner_text("main")
    for name in ("contexts", "circuits"):
        assert f"{name} is not among its analyses." in told
    assert here.page.locator("figure:has-text('Dimensionality')").count() == 1
    dead = pd.read_parquet(finished / RESULTS / "features/batchtopk/features.parquet")
    dead = dead.loc[~dead["alive"], "feature"]
    for number, why in [(64, "they are numbered 0 to 63"), *((i, "is dead") for i in dead[:1])]:
        here.go(f"#/feature/{number}")
        assert why in here.page.inner_text("main")


def test_features_and_experiments_side_by_side(look, table, sites, analysed):
    a, b = (int(i) for i in table["feature"][:2])
    here = look(f"#/compare?a={a}&b={b}")
    assert here.text("main section h2 >> nth=0")[0] == f"hostile: feature {a}"
    assert here.page.locator("section[aria-label^='Feature']").count() == 2
    here.page.fill("#compare-other", "../../tiny/atlas")
    here.page.fill("#compare-a", "")
    here.page.fill("#compare-b", "")
    here.after(here.page.click, "form button")
    rows = here.page.locator("table.wide tbody tr")
    found = {row[0]: row[1:] for row in (r.split("\t") for r in rows.all_inner_texts())}
    assert found["living features"] == [str(len(table))] * 2
    assert found["explained variance"][0] == found["explained variance"][1]
    assert here.text("table.wide thead th") == ["", "hostile", "tiny"]
    here.go(f"#/compare?a={a}&b={a}&other=../../tiny/atlas/index.html")
    assert here.text("main h2:has-text('tiny')") == [f"tiny: feature {a}"]
    for address in ("https://example.org/atlas", "//example.org/atlas", "http://localhost:1/"):
        here.go(f"#/compare?other={address}")
        assert "only an atlas on the same disk" in here.text("[role=alert]")[0]


def test_a_feature_alone_is_told_what_to_compare_it_with(look, table):
    """Without any the page begins with an example: a feature beside the nearest, each a link."""
    here = look("#/compare")
    shown = here.text("main section h2 >> nth=0")[0].removeprefix("hostile: ")
    links = here.text("p.example a")
    assert links[0] == shown
    assert here.page.locator("section[aria-label^='Feature']").count() == 2
    here.after(here.page.click, "p.example a >> nth=0")
    assert links[1] == here.text(".partners a")[0]
    number = int(table["feature"][0])
    here = look(f"#/compare?a={number}")
    others = here.text(".partners a")
    assert len(others) >= 8
    assert f"feature {number}" not in others
    here.after(here.page.click, ".partners a >> nth=0")
    assert here.text("main h2")[1:] != []
    assert f"a={number}&b={others[0].split()[1]}" in here.page.url


def test_a_folder_that_holds_no_atlas_is_told(look):
    here = look("#/compare?other=../../nothing")
    assert "cannot be read" in here.text("[role=alert]")[0]
    assert all("ERR_FILE_NOT_FOUND" in fault for fault in here.faults)
    here.faults.clear()


@pytest.mark.parametrize(
    "page", ["", "table?sort=-density", "lives", "map", "words", "feature/{}", "compare?a={}&b={}"]
)
def test_a_phone_scrolls_in_one_direction(look, table, page):
    here = look(
        f"#/{page.format(*table['feature'][:2])}",
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
    )
    assert here.fits()
    small = here.page.evaluate("""() => [...document.querySelectorAll("main button, .bar button")]
        .filter((one) => one.offsetParent && one.getBoundingClientRect().height < 23.5)
        .map((one) => one.outerHTML)""")
    assert small == []


def test_dark_and_light(look):
    def luminance(here: Looked, selector: str, what: str) -> float:
        found = here.page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
        return float(np.mean([int(x) for x in re.findall(r"\d+", found)[:3]]))

    here = look("#/", color_scheme="dark")
    assert luminance(here, "html", "backgroundColor") < 60 < luminance(here, "html", "color")
    here.page.click("#theme")
    assert luminance(here, "html", "backgroundColor") > 200 > luminance(here, "html", "color")
    here.page.reload()
    here.wait(0)
    assert luminance(here, "html", "backgroundColor") > 200  # remembered
    assert luminance(look("#/"), "html", "backgroundColor") > 200


@pytest.mark.skipif(not (DEFAULT / "atlas").exists(), reason="no results/default: make figures")
def test_the_default_experiments_site(look):
    """Where that experiment has been run: its own site, from the map to forty features' numbers."""
    tables = DEFAULT / "features/batchtopk"
    kinds = pd.read_parquet(tables / "kinds.parquet")[["feature", "kind"]]
    features = pd.read_parquet(tables / "features.parquet")
    living = features[features["alive"]].merge(kinds, on="feature", how="left")
    living = living.fillna({"kind": "none"}).set_index("feature")
    strengths = pd.read_parquet(tables / "strengths.parquet").pivot(
        index="feature", columns="snapshot_index", values="strength"
    )
    here = look("#/", site=DEFAULT / "atlas")
    for name, count in {
        "previous token": (living["kind"] == "previous_token").sum(),
        "emergent": living["emergent"].sum(),
    }.items():
        link = f".census a.much[aria-label*=' {name} ']"
        assert here.text(link) == [str(count)]
    here.go("#/table?kind=previous_token&onset=100..400&sort=-density")
    some = living[(living["kind"] == "previous_token") & living["onset_step"].between(100, 400)]
    some = some.sort_values("density", ascending=False, kind="stable")
    assert here.count() == len(some)
    assert here.text("tbody th") == [str(i) for i in some.index[:50]]
    for number in np.random.default_rng(0).choice(living.index, 40, replace=False):
        here.go(f"#/feature/{number}")
        facts = dict(zip(here.text(".facts dt"), here.text(".facts dd"), strict=True))
        row = living.loc[number]
        assert facts["peak"] == f"snapshot {row['peak_snapshot_index']}, step {row['peak_step']:,}"
        assert facts["kind"] == row["kind"].replace("_", " ")
        numbers = "figure:has(h2:text-is('Strength')) .numbers"
        here.page.click(f"{numbers} summary")
        here.page.locator(f"{numbers} td").first.wait_for()  # made as it is opened
        cells = here.text(f"{numbers} td")
        shown = np.array([float(x.replace("–", "nan")) for x in cells])
        own = shown.reshape(strengths.shape[1], -1)[:, 0]
        np.testing.assert_allclose(own, strengths.loc[number], rtol=2e-3, atol=1e-4)
