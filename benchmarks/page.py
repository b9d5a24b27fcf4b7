"""docs/performance.md's measured part and its plot, from the rows of a benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ontogeny.figures import style
from ontogeny.files import write_text

PAGE = Path("docs/performance.md")
README = Path("README.md")
PLOT = Path("docs/performance.png")
ROWS_PLOT = Path("docs/rows.png")
MARKS = "<!-- benchmark -->", "<!-- /benchmark -->"
ROWS_MARKS = "<!-- rows -->", "<!-- /rows -->"
RANKS_MARKS = "<!-- ranks -->", "<!-- /ranks -->"
LIKE_FOR_LIKE_MARKS = "<!-- like_for_like -->", "<!-- /like_for_like -->"
SPEED_MARKS = "<!-- speed -->", "<!-- /speed -->"
EXTRACTION_MARKS = "<!-- extraction -->", "<!-- /extraction -->"
COLOURS = {
    "principal": "#009E73",
    "full": "#0072B2",
    "dense": "#E69F00",
    "sparsify": "#D55E00",
    "llamascopium": "#CC79A7",
    "bound": "#999999",
    "bound_principal": "#444444",
}
NAMES = {
    "principal": "Ontogeny, principal",
    "full": "Ontogeny, full space",
    "dense": "plain dense",
    "bound": "bound: encoder product, full",
    "bound_principal": "bound: encoder product, principal",
}
GROUPS = {
    "first": "32 snapshots × 128 wide, 2,048 features",
    "big": "32 snapshots × 128 wide, 16,384 features",
    "wide": "8 snapshots × 768 wide, 8,192 features",
    "snapshots": "Growth with snapshots (128 wide, 2,048 features)",
    "features": "Growth with features (32 snapshots × 128 wide)",
}


def name(path: str) -> str:
    """A path's name for people."""
    base, _, rest = path.partition(", ")
    return NAMES.get(base, base) + (f", {rest}" if rest else "")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "| path | n × d | r | F | batch | tokens/s (quartiles) | memory, MB | EV | L0 | seen |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scored = row["l0"] is not None
        seed = f", seed {row['seed']}" if row["seed"] else ""
        lines.append(
            f"| {name(row['path'])}{seed} "
            f"| {row['n']} × {row['d']} | {row['r']:,} | {row['features']:,} | {row['batch']:,} "
            f"| {row['tokens_per_second']:,.0f} ({row['tokens_per_second_low']:,.0f} to "
            f"{row['tokens_per_second_high']:,.0f}) | {row['peak_bytes'] / 1e6:,.0f} "
            + (
                f"| {row['explained_variance']:.4f} | {row['l0']:.1f} "
                f"| {row['curve'][-1]['tokens']:,} |"
                if scored
                else "| | | |"
            )
        )
    return "\n".join(lines)


def find(
    rows: Sequence[dict[str, Any]], group: str, path: str, **same: Any
) -> dict[str, Any] | None:
    """The first row of a group and path with these values."""
    return next(
        (
            r
            for r in rows
            if r["group"] == group and r["path"] == path and all(r[k] == v for k, v in same.items())
        ),
        None,
    )


def ratios(rows: Sequence[dict[str, Any]]) -> str:
    """How the paths compare, as a list of sentences."""
    said = []

    def compare(text: str, one: Any, other: Any) -> None:
        if one and other:
            times = one["tokens_per_second"] / other["tokens_per_second"]
            said.append(f"- {text}: {times:.3g} times.")

    for path in ("full", "principal"):
        for peer in ("sparsify", "dense"):  # llamascopium's loss is another: see like_for_like
            here, there = find(rows, "first", path, seed=0), find(rows, "first", peer)
            compare(f"{name(path)} against {name(peer)}, 2,048 features", here, there)
    for path, bound in (("full", "bound"), ("principal", "bound_principal")):
        for group, batch in (("first", 512), ("big", 2048)):
            here = find(rows, group, path, batch=batch, seed=0)
            there = find(rows, group, bound, batch=batch)
            text = f"{name(path)} of its bound, {GROUPS[group].split(', ')[1]}, batch {batch:,}"
            compare(text, here, there)
    far, near = (find(rows, "snapshots", "principal", n=n) for n in (128, 32))
    compare("Tokens/s at 128 snapshots, of those at 32, principal", far, near)
    pair = [find(rows, "first", path, seed=0) for path in ("principal", "full")]
    if all(pair):
        ends = [row["curve"][-1] for row in pair if row]
        tokens = min(end["tokens"] for end in ends)
        at = [next(c for c in row["curve"] if c["tokens"] == tokens) for row in pair if row]
        gap = [a - b for a, b in zip(at[0]["by_site"], at[1]["by_site"], strict=True)]
        dead = [row["dead"] for row in pair if row]
        said.append(
            f"- Held-out explained variance after {tokens:,} tokens: principal "
            f"{at[0]['explained_variance']:.4f} at L0 {at[0]['l0']:.1f}, full space "
            f"{at[1]['explained_variance']:.4f} at L0 {at[1]['l0']:.1f}; by snapshot the "
            f"principal's is {min(gap):+.4f} to {max(gap):+.4f}. Dead: "
            f"{dead[0]:.1%} and {dead[1]:.1%}."
        )
    partners = Path(__file__).parent / "results" / "partners.json"
    if partners.exists():
        share = json.loads(partners.read_text())
        texts = [f"{value:.1%} ({key})" for key, value in sorted(share.items())]
        said.append(f"- Full-space features with a partner of cosine ≥ 0.7: {', '.join(texts)}.")
    for row in rows:
        if row["group"] == "first" and row["state_bytes"]:
            said.append(
                f"- Memory of {name(row['path'])}, seed {row['seed']}: "
                f"{row['peak_bytes'] / row['state_bytes']:.2f} times weights, gradients, moments "
                f"and two batches ({row['bytes_per_parameter']:.1f} bytes per parameter)."
            )
    return "\n".join(said)


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Four panels: speed by path, against snapshots, against features, and quality."""
    with style.paper():
        figure = style.new_figure(183, 120)
        ((bars, by_n), (by_features, quality)) = figure.subplots(2, 2)
        _bars(bars, [r for r in rows if r["group"] == "first" and not r["seed"]])
        for axes, group, x in ((by_n, "snapshots", "n"), (by_features, "features", "features")):
            for path in ("principal", "full", "bound_principal"):
                found = [r for r in rows if r["group"] == group and r["path"] == path]
                if group == "features":
                    found += [r for r in [find(rows, "first", path, seed=0)] if r]
                found.sort(key=lambda r: r[x])
                if len(found) > 1:
                    values = [r["tokens_per_second"] for r in found]
                    axes.plot(
                        [r[x] for r in found],
                        values,
                        "o-",
                        ms=3,
                        color=COLOURS[path],
                        label=name(path),
                    )
            axes.set(xscale="log", yscale="log", ylabel="tokens/s")
            axes.set_xlabel("snapshots" if x == "n" else "features")
            drawn = {r[x] for r in rows if r["group"] == group}
            drawn |= {r[x] for r in rows if r["group"] == "first"}
            _ticks(axes, {v: f"{v:,}" for v in sorted(drawn)})
            if axes.lines:
                axes.legend(frameon=False)
        for row in rows:
            if (
                row["group"] == "first"
                and row["curve"]
                and not row["seed"]
                and ", " not in row["path"]
            ):
                quality.plot(
                    [c["seconds"] for c in row["curve"]],
                    [c["explained_variance"] for c in row["curve"]],
                    "o-",
                    ms=2,
                    color=COLOURS[row["path"]],
                    label=f"{name(row['path'])} (L0 {row['l0']:.0f})"
                    + (", below 0" if row["explained_variance"] < 0 else ""),
                )
        quality.set(xscale="log", xlabel="seconds of training", ylabel="held-out EV", ylim=(0, 1))
        if quality.lines:
            quality.legend(frameon=False, loc="lower right")
        figure.savefig(PLOT, dpi=200)


def _ticks(axes: Axes, labels: dict[int, str]) -> None:
    """Ticks of a logarithmic x axis at the values that were measured, and nowhere else."""
    axes.minorticks_off()
    axes.yaxis.minorticks_on()
    axes.set_xticks(list(labels), list(labels.values()))


def _bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda r: r["tokens_per_second"])
    values = [r["tokens_per_second"] for r in rows]
    errors = [
        [r["tokens_per_second"] - r["tokens_per_second_low"] for r in rows],
        [r["tokens_per_second_high"] - r["tokens_per_second"] for r in rows],
    ]
    colours = [COLOURS[r["path"].split(", ")[0]] for r in rows]
    axes.barh([name(r["path"]) for r in rows], values, color=colours, xerr=errors)
    for i, value in enumerate(values):
        axes.text(value * 1.15, i, f"{value:,.0f}", va="center")
    axes.set(xscale="log", xlabel="tokens/s", xlim=(50, max(values, default=1) * 8))


def write_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The part about rows seen: its table and its plot."""
    lines = [
        "| steps | rows seen | matched | held-out EV, mean | least | L0 | dead |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['steps']:,} | {r['rows']:,} | {r['matched']:.1%} | {r['explained_variance']:.4f} "
        f"| {r['explained_variance_least']:.4f} | {r['l0']:.1f} | {r['dead']:.1%} |"
        for r in rows
    ]
    replace_part(ROWS_MARKS, "\n".join(lines))
    with style.paper():
        figure = style.new_figure(120, 55)
        left, right = figure.subplots(1, 2)
        seen = [r["rows"] for r in rows]
        left.plot(seen, [r["matched"] for r in rows], "o-", ms=3, color="#009E73")
        left.set(ylabel="features matched across seeds", ylim=(0, 1))
        right.plot(seen, [r["explained_variance"] for r in rows], "o-", ms=3, label="mean")
        right.plot(
            seen,
            [r["explained_variance_least"] for r in rows],
            "o--",
            ms=3,
            color="#999999",
            label="least of the snapshots",
        )
        right.set(ylabel="held-out explained variance")
        right.legend(frameon=False)
        for axes in (left, right):
            axes.set(xscale="log", xlabel="rows seen (millions)")
            _ticks(axes, {rows: f"{rows / 1e6:.1f}" for rows in seen})
        figure.savefig(ROWS_PLOT, dpi=200)


def write_ranks(rows: Sequence[dict[str, Any]]) -> None:
    """Put the table of a training on two processes into the page."""
    lines = [
        "| features | rows of a batch | s a step, one | two | efficiency | of processor time | "
        "messages | waiting |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['features']:,} | {row['batch']:,} | {row['seconds_one']:.3f} | "
            f"{row['seconds_two']:.3f} | {row['efficiency']:.0%} | {row['work']:.0%} | "
            f"{row['messages']:.1%} | {row['waiting']:.1%} |"
        )
    replace_part(RANKS_MARKS, "\n".join(lines))


def write_extraction(found: dict[str, Any]) -> None:
    """The part about activations: a table of the models, and a line about reading."""
    lines = [
        "| model | layer | d | hidden states | bare | read | written | over hidden states "
        "| of bare | writing costs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["models"]:
        rates = row["tokens_per_second"]
        speeds = [rates[k] for k in ("hidden states", "bare", "read", "written")]
        lines.append(
            f"| {row['model']} | {row['layer']} of {row['layers']} | {row['width']} | "
            + " | ".join(f"{speed:,.0f}" for speed in speeds)
            + f" | {row['over_hidden_states']:.2f}× | {row['of_bare']:.0%} "
            f"| {row['writing_costs']:+.1%} |"
        )
    read = found["reading"]
    lines += [
        "",
        f"Reading {read['bytes'] / 1e6:.0f} MB of rows, with checksums compared, in GB/s:",
        "",
        "| from | plain file | reader | of plain file | through HDF5's filters |",
        "|---|---|---|---|---|",
    ]
    for where in ("disk", "cache"):
        rates = {name: rate / 1e9 for name, rate in read[where]["bytes_per_second"].items()}
        lines.append(
            f"| {where} | {rates['plain file']:.1f} | {rates['reader']:.1f} | "
            f"{read[where]['of_plain_file']:.0%} | {rates['h5py']:.1f} |"
        )
    replace_part(EXTRACTION_MARKS, "\n".join(lines))


def write_like_for_like(found: dict[str, Any]) -> None:
    """The part about one loss here and in the peers' libraries, and README's sentence from it."""
    rows, sizes = found["rows"], found["about"]
    parts = {p: [r for r in rows if r["part"] == p] for p in ("speed", "snapshots", "quality")}
    written = []
    if parts["speed"]:
        lines = [
            "| step of | loss | gate per | rows/s (quartiles) | L0 | of llamascopium's |",
            "|---|---|---|---|---|---|",
        ]
        for row in parts["speed"]:
            ratio = row.get("ratio_to_llamascopium")
            low, high = row["quartiles"]
            lines.append(
                f"| {_path(row['path'])} | {row['loss']} | {row['gate']} "
                f"| {row['rows_per_second']:,.0f} ({low:,.0f} to {high:,.0f}) | {row['l0']:.1f} "
                f"| {'' if ratio is None else f'{ratio:.3g} times'} |"
            )
        written.append("\n".join(lines))
    said = []
    for row in parts["snapshots"]:
        near = next(r for r in parts["snapshots"] if r["n"] == 32 and r["path"] == row["path"])
        if row["n"] > near["n"]:
            times = near["rows_per_second"] / row["rows_per_second"]
            said.append(
                f"- {row['n']} snapshots cost {times:.2f} times what {near['n']} do: "
                f"{row['rows_per_second']:,.0f} against {near['rows_per_second']:,.0f} rows/s "
                f"({_path(row['path'])}, {row['loss']}, gate per {row['gate']})."
            )
    said += [
        f"- Memory of {_path(row['path'])}, {row['loss']}, while it trains: "
        f"{row['peak_bytes'] / 1e6:,.0f} MB, {row['memory']:.2f} times its weights, gradients, "
        f"moments ({row['bytes_per_parameter']:.1f} bytes per parameter) and two batches."
        for row in parts["quality"]
        if "memory" in row
    ]
    if said:
        written.append("\n".join(said))
    if parts["quality"]:
        marks = [round(at["seconds"]) for at in parts["quality"][0]["curve"]]
        lines = [
            "| training of | loss | gate per | " + " | ".join(f"EV, {m} s" for m in marks)
            + " | least snapshot | L0 | rows seen | rows/s | memory, MB |",
            "|---|---|---|" + "---|" * len(marks) + "---|---|---|---|---|",
        ]  # fmt: skip
        for row in parts["quality"]:
            values = " | ".join(f"{at['explained_variance']:.4f}" for at in row["curve"])
            lines.append(
                f"| {_path(row['path'])} | {row['loss']} | {row['gate']} | {values} "
                f"| {row['explained_variance_least']:.4f} | {row['l0']:.1f} "
                f"| {row['rows_seen']:,} | {row['rows_per_second']:,.0f} "
                f"| {row['peak_bytes'] / 1e6:,.0f} |"
            )
        written.append("\n".join(lines))
    replace_part(LIKE_FOR_LIKE_MARKS, "\n\n".join(written))
    by_path = {row["path"]: row for row in parts["speed"] if row["loss"].startswith("JumpReLU")}
    if {"hybrid", "full", "hybrid without a compiler"} <= set(by_path):
        ours = by_path["hybrid"]
        theirs = [row for row in parts["speed"] if row.get("ratio_to_llamascopium") == 1.0]
        replace_part(
            SPEED_MARKS,
            "With the paper's loss and its gate per snapshot (32 snapshots × "
            f"{sizes['width']} wide, {sizes['features']:,} features, batch {sizes['batch']}, "
            f"{sizes['threads']} threads) a step is "
            f"{ours['ratio_to_llamascopium']:.0f} times as fast as that of llamascopium, the "
            f"paper's library, at L0 {ours['l0']:.0f} here and {theirs[0]['l0']:.0f} there; "
            f"{by_path['full']['ratio_to_llamascopium']:.0f} times without the subspace, "
            f"{by_path['hybrid without a compiler']['ratio_to_llamascopium']:.0f} times without a "
            "C++ compiler.",
            README,
        )


def _path(path: str) -> str:
    """A path's name for people, where its loss stands beside it."""
    if path.startswith(("llamascopium", "sparsify")):
        return path
    return f"Ontogeny, {path.removeprefix('batchtopk ')}"


def replace_part(marks: tuple[str, str], body: str, page: Path | None = None) -> None:
    """Put `body` between two marks of a page."""
    page = page or PAGE
    before, rest = page.read_text(encoding="utf-8").split(marks[0])
    _, after = rest.split(marks[1])
    write_text(page, f"{before}{marks[0]}\n\n{body}\n\n{marks[1]}{after}")


def write(rows: Sequence[dict[str, Any]]) -> None:
    """The page's marked part and the plot."""
    parts = []
    for group, title in GROUPS.items():
        found = [r for r in rows if r["group"] == group]
        if found:
            parts.append(f"### {title}\n\n{table(found)}")
    replace_part(MARKS, "\n\n".join([ratios(rows), *parts]))
    draw(rows)
