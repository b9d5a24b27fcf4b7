"""The page of passages in a browser: by mouse and keys, light and dark, on a phone."""

from __future__ import annotations

import pytest

from ontogeny.corpus.pieces import visible

pytestmark = pytest.mark.slow


def shown(text: str) -> str:
    return visible(text).strip()


def test_the_scrubber_changes_losses_features_and_what_is_expected(look, analysed):
    table = analysed.table("passages")
    own = table[table["passage"] == 1]
    here = look("#/passages?text=1&at=0")
    for i, step in enumerate(analysed.steps):
        if i:
            here.after(here.page.keyboard.press, "ArrowRight")
        now = own[own["step"] == step].sort_values("position")
        losses = [float(text.split()[-1]) for text in here.text(".gloss .loss")]
        assert losses == pytest.approx(list(now["loss"]), abs=0.006)
        assert f"step {step}, mean loss {now['loss'].mean():.2f} nats" in here.text("output")[0]
        expected = [shown(text) for text in now["next_1"]]
        got = here.text(".gloss .next .token")
        assert [g for g, e in zip(got, expected, strict=True) if e] == [e for e in expected if e]
    here.page.locator("#snapshot").focus()
    here.after(here.page.keyboard.press, "Home")
    assert "at=0" in here.page.url
    assert here.fits()


def test_a_token_shows_all_that_is_kept_and_leads_to_features(look, analysed):
    features = analysed.table("features")
    living = set(features.loc[features["alive"], "feature"])
    kept = analysed.table("passage_features")
    kept = kept[(kept["passage"] == 0) & kept["feature"].isin(living)]
    last = kept[kept["step"] == analysed.steps[-1]]
    position = int(last["position"].iloc[0])
    expected = list(last.loc[last["position"] == position, "feature"])
    here = look("#/passages")
    word = here.page.locator(f'[data-token="{position}"]')
    word.focus()
    here.after(here.page.keyboard.press, "Enter")
    assert here.text(".chosen tbody th") == [str(number) for number in expected]
    focused = here.page.evaluate("document.activeElement.dataset.token")
    assert focused == str(position)
    here.after(here.page.locator(".chosen tbody a").first.click)
    assert f"#/feature/{expected[0]}" in here.page.url


def test_hostile_tokens_stay_text_and_a_phone_scrolls_in_one_direction(look):
    for scheme in ("light", "dark"):
        here = look(
            "#/passages?token=1", viewport={"width": 360, "height": 740}, color_scheme=scheme
        )
        assert here.fits()
        assert here.page.locator("main script, main img").count() == 0
        names = here.page.evaluate(
            "[...document.querySelectorAll('main button, main input, main select, main a')]"
            ".filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label')"
            " || e.labels?.length || e.title)).map((e) => e.outerHTML)"
        )
        assert names == []


def test_without_passages_a_sentence_says_why(look, sites):
    here = look("#/passages", sites[1])
    assert "passages is not among its analyses" in here.text(".missing")[0]
