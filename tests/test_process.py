"""What a process of ours spends at its start and end."""

from __future__ import annotations

import subprocess
import sys

from runs import Run

from ontogeny import lineage

CYCLE = """
{begin}
class Told:
    def __del__(self):
        print("collected")
told = Told()
told.itself = told
"""


def said(code: str) -> str:
    """What a Python process of these lines prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_no_garbage_is_looked_for_as_a_process_ends():
    begin = "from ontogeny import process; process.begin(); process.begin()"
    assert said(CYCLE.format(begin=begin)) == ""
    assert said(CYCLE.format(begin="")) == "collected\n"


def test_a_kept_snapshot_is_taken_without_torch(tmp_path):
    run = Run(tmp_path)
    state = lineage.archive(run.map) / "step3"
    state.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "optimizer.safetensors"):
        (state / name).write_bytes(name.encode())
    words = ["snapshot", str(run.map.folder), "3", "--threads", "2"]
    code = "import sys; from ontogeny.cli import main\n"
    code += f"main({words}, standalone_mode=False); print('torch' in sys.modules)"
    assert said(code) == "False\n"
    files = sorted(path.name for path in run.map.path("snapshot", step=3).iterdir())
    assert files == ["config.json", "model.safetensors"]


def test_figures_and_stages_that_need_no_torch_import_none():
    """It takes a process seconds to load."""
    code = "import sys; from ontogeny import registry, summary\n"
    code += "from ontogeny.declarations import function\n"
    code += "light = [s for s in registry.stages().values() if not s.cost.torch]\n"
    code += "for one in (*registry.figures().values(), *light):\n"
    code += "    function(one.run)\n"
    code += "    assert not {'torch', 'transformers'} & sys.modules.keys(), one.name\n"
    code += "print(len(registry.figures()) > 20 and len(light) > 2)"
    assert said(code) == "True\n"
