"""Run a notebook's cells in order, in one process, and store what they show.

    python docs/notebook.py docs/notebook.ipynb

It needs no Jupyter: a cell's output is what it prints and the value of its last expression, a
DataFrame as a table and matplotlib axes as a picture. An error ends the run, and nothing is stored.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

DPI = 80  # of stored pictures


def run(path: Path, replaced: dict[str, str] | None = None) -> dict[str, Any]:
    """The notebook with the outputs of its cells, as nbformat 4 has them.

    Parameters
    ----------
    replaced : old → new text of the cells' code, each of which has to be there.
    """
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    given = dict(replaced or {})
    for number, cell in enumerate(cells, 1):
        code = "".join(cell["source"])
        for old in [old for old in given if old in code]:
            code = code.replace(old, given.pop(old))
        cell["outputs"], cell["execution_count"] = _outputs(code, names, number), number
    if given:
        raise ValueError(f"{path}: no cell holds {', '.join(given)}")
    return notebook


def _outputs(code: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """What one cell shows."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    where, printed, value = f"cell {number}", io.StringIO(), None
    with redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        shown = {"output_type": "execute_result", "execution_count": number, "metadata": {}}
        outputs.append(shown | {"data": _data(value)})
    return outputs


def _data(value: Any) -> dict[str, Any]:
    """A value in the forms that a notebook shows it in."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_().splitlines(keepends=True)
    if hasattr(value, "get_figure"):
        picture = io.BytesIO()
        value.get_figure().savefig(picture, format="png", dpi=DPI)
        data["image/png"] = base64.b64encode(picture.getvalue()).decode()
        data["text/plain"] = [f"<{type(value).__name__}>"]  # without places in memory
    return data


def main(path: str) -> None:
    """Run the notebook at a path, and store its outputs there."""
    notebook = run(Path(path))
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
