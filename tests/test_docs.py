"""The pages: links lead somewhere, numbers are those of the run, words are those of the field."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "results/README.md",
    ROOT / "config/README.md",
    ROOT / "benchmarks/README.md",
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^ {4}.*$", "", text)
    return re.sub(r"(`+).+?\1", "", text)


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    words = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower())
    return words.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    return {anchor(heading) for heading in re.findall(r"(?m)^#+ (.+)$", text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page):
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(link)
        elif heading and heading not in anchors(target):
            broken.append(link)
    assert not broken


def test_the_sites_menu_has_every_page():
    shown = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert shown == {page.name for page in (ROOT / "docs").glob("*.md")} | {"index.md"}


# Numbers of the default experiment


def step(value: float) -> str:
    return f"{value:,.0f}"


def interval(numbers: dict[str, float], name: str) -> str:
    low, high = (step(numbers[f"{name}_{end}"]) for end in ("low", "high"))
    middle = numbers.get(f"{name}_median", numbers.get(f"{name}_step"))
    return f"{step(middle)} [{low}, {high}]"


@pytest.fixture(scope="module")
def numbers() -> dict[str, float]:
    """Headline numbers of a run of the default experiment: docs/headlines.json."""
    return json.loads((ROOT / "docs/headlines.json").read_text())


def words(text: str) -> str:
    return " ".join(text.split())


def claims(n: dict[str, float]) -> list[str]:
    """What README says of the default experiment, with the numbers of the run."""
    kinds = ("current_token", "previous_token", "induction", "context", "none", "position")
    tested = sum(n[f"kind_{kind}_tested"] for kind in kinds)
    named = ("current_token", "previous_token", "induction", "context", "position")
    by_rule = sum(n[f"kind_{kind}"] - n[f"kind_{kind}_tested"] for kind in named)
    return [
        f"that of unigrams at step {step(n['unigram_crossing_step'])} and below that of bigrams at "
        f"step {step(n['bigram_crossing_step'])}",
        f"appears at step {interval(n, 'previous_token_onset')}",
        f"feature at {interval(n, 'induction_onset')}",
        f"Of the {tested} features that are active often enough to be tested, "
        f"{n['kind_previous_token_tested']} need the previous token, {n['kind_induction_tested']} "
        f"an earlier copy of the pair, and {n['kind_context_tested']} wider context",
        f"({n['kinds_untested_features']} of the {n['living_features']} living features could not "
        f"be tested; rules name {by_rule} of them.)",
        f"directions change most at step {interval(n, 'turning_point')}",
        f"they turn at step {interval(n, 'plain_turning_point')}",
        f"explains {n['explained_variance_total_mean']:.3f} of the variance with "
        f"{n['l0_mean']:.0f} active features per token (the token table alone "
        f"{n['token_explained_variance']:.3f}, PCA in addition to the table "
        f"{n['pca_explained_variance']:.3f}), and recovers {n['loss_recovered_last']:.3f} of the "
        f"loss. The other seed finds {n['matched_feature_share']:.0%} of its living features again",
    ]


# In README's section and not in the file: the interval's share, and what makers_by_kind.csv says.
OTHERS = {"95% intervals", "84% [78, 90]", "width 64", "12.3 million tokens"}


def test_the_readme_repeats_the_runs_numbers_and_no_others(numbers):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = words(text.split("## What the default experiment finds")[1].split("\n## ")[0])
    for claim in [*claims(numbers), *OTHERS]:
        assert claim in section, claim
        section = section.replace(claim, "")
    assert not re.findall(r"\d+", section)


def test_the_results_page_repeats_the_runs_numbers(numbers):
    n, page = numbers, words((ROOT / "docs/results.md").read_text(encoding="utf-8"))
    rows = []
    for kind in ("current_token", "previous_token", "induction", "context"):
        onset = f"{kind}_onset"
        share = n[f"kind_{kind}_matched"] / n[f"kind_{kind}"]
        quartiles = f"{step(n[f'{onset}_q25'])} to {step(n[f'{onset}_q75'])}"
        rows.append(
            f"| {kind.replace('_', ' ')} | {n[f'kind_{kind}']} | {share:.0%} | "
            f"{interval(n, onset)} | {quartiles} |"
        )
    spearman = "span_replaced_onset_spearman"

    def correlation(name: str) -> str:
        values = (n[name], n[f"{name}_low"], n[f"{name}_high"])
        return "{:.2f} [{:.2f}, {:.2f}]".format(*values).replace("-", "−")

    rows += [
        f"the unigram level ({n['unigram_cross_entropy']:.2f} nats) at step "
        f"{step(n['unigram_crossing_step'])}",
        f"the bigram level ({n['bigram_cross_entropy']:.2f}) at step "
        f"{step(n['bigram_crossing_step'])}",
        f"step {interval(n, 'turning_point')}; mean cosine "
        f"{n['within_block_cosine']:.2f} within the blocks, "
        f"{n['between_block_cosine']:.2f} between",
        f"{n['initialisation_share']:.0%} of the living features are present at step 0, "
        f"{n['initialisation_share_matched']:.0%} of the matched ones",
        f"mean over snapshots {n['explained_variance_total_mean']:.3f}, least "
        f"{n['explained_variance_min']:.3f}, at L0 {n['l0_mean']:.1f}",
        "| explained share of what the table does not explain | "
        f"{n['explained_variance_beyond_mean']:.3f} |",
        f"PCA with as many coefficients and the table {n['pca_explained_variance']:.3f}, token "
        f"pair table {n['pair_explained_variance']:.3f}, random decoder directions and the table "
        f"{n['random_dictionary_explained_variance']:.3f}, token table alone "
        f"{n['token_explained_variance']:.3f}; the same dictionary without the table "
        f"{n['plain_explained_variance_total_mean']:.3f} at L0 {n['plain_l0_mean']:.1f}",
        f"| loss recovered at the last snapshot | {n['loss_recovered_last']:.3f} |",
        f"| living features | {n['living_features']} of {n['features']:,} |",
        f"of the matched {n['matched_peaks_within_two']:.0%} peak within two",
        f"token means match {n['matched_feature_share_token_means']:.0%} of the features, random "
        f"held-out rows {n['matched_feature_share_random_rows']:.0%}",
        f"| named by rule | {n['named_features']} of the living features "
        f"({n['named_feature_share']:.0%}), {n['named_features_strongest']} of them only after "
        "where they are strongest |",
        f"features {n['silent_births_frequent']:.1%} are silent",
        f"their deaths {n['silent_deaths_frequent']:.1%}; without the token table "
        f"{n['plain_silent_births_frequent']:.0%} and {n['plain_silent_deaths_frequent']:.0%}",
        f"Spearman {correlation(spearman)} over all features, "
        f"{correlation(f'{spearman}_emergent')} over the emergent alone",
        f"Features take up {n['dimensionality_first']:.2f} of the stream's dimensions at step 0, "
        f"{n['dimensionality_least']:.2f} at step {n['dimensionality_least_step']} and "
        f"{n['dimensionality_last']:.2f} at the end",
        *(
            f"| `{task}` | {n[f'task_{task}_accuracy']:.2f} |"
            for task in ("copied_name", "recalled_argument", "self_attribute", "closing_bracket",
                         "indentation")
        ),
    ]  # fmt: skip
    missing = [row for row in rows if row not in page]
    assert not missing


# Words


def test_the_readme_fits_three_screens_and_opens_with_the_question():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert "?" in lines[2]


# What our own pages used to say, and a native speaker would not.
HOUSE_WORDS = [
    r"\b([Oo]ne|a) (row|file|job|line|dot|gate|point|value|count|number|name|column|process|block) "
    r"an? (feature|seed|snapshot|step|token|stage|fault|file|rank|GPU)",
    r"\bsaid of\b",
    r"\bhas no like\b",
    r"\bthe token before\b",
    r"\bhang on\b",
    r"\bits like\b",
    r"\bMETHOD\b",
    r"\bis gone on from\b",
    r"\bwhat cannot run\b",
    r"\ba fault of ours\b",
    r"\bof its own name\b",
    r"\btold (apart|from)\b",
    r"\b(is|are) told\b",
    r"\bcannot be had\b",
    r"\bthe mend\b",
    r"\bin the mean\b",
    r"\bof one's own\b",
    r"\bof ours\b",
    r"\bless (its|their) mean\b",
    r"\b(come|comes|came) again\b",
    r"\b(goes|gone|go) on from\b",
    r"\b(is|are) no (id|folder|pattern)\b",
    r"\bat so many\b",
    r"\bone a block\b",
    r"\basks? for( it)? alone\b",
    r"\b(what|which) moves what\b",
    r"\btake off first\b",
    r"\bas it stands\b",
    r"\bwhat (it|that|this|the (table|dictionary|pair)) leaves\b",
]


def shown_files() -> list[Path]:
    """Pages, captions and descriptions that readers see."""
    listed = subprocess.run(
        ["git", "ls-files", "*.md", "*.rst", "src/ontogeny/**/columns.yaml", "config.yaml",
         "schemas/config.schema.json"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    return [ROOT / name for name in listed if name != "CHANGELOG.md"] or PAGES


@pytest.mark.parametrize("pattern", HOUSE_WORDS)
def test_house_words_do_not_come_back(pattern):
    said = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in shown_files()
        for match in re.finditer(pattern, path.read_text(encoding="utf-8"))
    ]
    assert not said


def test_a_house_word_would_be_found():
    assert re.search(HOUSE_WORDS[0], "one file a stage, and a row a feature")


def test_captions_are_words_without_templates():
    """A caption is for every experiment: the text beside a figure is the caption as it is."""
    captions = sorted((ROOT / "src").rglob("*.rst"))
    assert len(captions) > 20
    for path in captions:
        assert not re.search(r"\{\{|\{%", path.read_text()), path
