"""One GPU a process, where several jobs run on one machine.

`snakemake --resources gpu=4` lets four jobs run that need a GPU, but does not assign one to each.
Each process takes one by locking a file of that GPU's; the system drops the lock when the process
ends, however it ends. Once all GPUs have a process they get a second one each, and so on: who
allows more jobs than there are GPUs wants them shared.

Nothing here is done where something else hands GPUs out: SLURM, or whoever has set
CUDA_VISIBLE_DEVICES. No torch is imported: it has to start when the choice is made.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ontogeny.locks import hold

VISIBLE = "CUDA_VISIBLE_DEVICES"
NAMED = "ONTOGENY_GPUS"  # names of this machine's GPUs, with commas, in place of asking the driver
HANDED_OUT = ("SLURM_JOB_ID", "LOCAL_RANK", VISIBLE)  # something else says who has which GPU
ALLOCATED = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS")  # set where a job was given GPUs
HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide all
DEV = Path("/dev")

_held: list[int] = []  # file descriptors: the locks last as long as the process


def present() -> list[str]:
    """Names of this machine's GPUs as CUDA_VISIBLE_DEVICES takes them; [] where none is seen."""
    if NAMED in os.environ:
        return [name for name in os.environ[NAMED].split(",") if name]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    words = [tool, "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return said.split()


def sign() -> str:
    """What says that this process has a GPU, such as "SLURM_JOB_GPUS=0"; '' where nothing does.

    Nothing is looked for where CUDA_VISIBLE_DEVICES hides all GPUs, or ONTOGENY_GPUS answers for
    what is there.
    """
    if NAMED in os.environ or os.environ.get(VISIBLE, "0") in HIDDEN:
        return ""
    for name in (*ALLOCATED, VISIBLE):
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    nodes = sorted(DEV.glob("nvidia[0-9]*"))
    if nodes:
        return str(nodes[0])
    return "nvidia-smi lists one" if present() else ""


def driver() -> str:
    """Version of this machine's NVIDIA driver, such as "580.65.06"; '' where none is found."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    words = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.split()[0] if said.split() else ""


def take(device: str, count: int = 1, locks: Path | None = None) -> str | None:
    """Have this process see `count` GPUs that no other has, and return their names.

    Returns None, and changes nothing, where `device` (the setting) is the CPU or a numbered GPU,
    where something else hands GPUs out, and where there are no more than `count`.

    Parameters
    ----------
    locks : folder of the files that are locked; one for each user of this machine when left out.
    """
    if device not in ("auto", "cuda") or any(name in os.environ for name in HANDED_OUT):
        return None
    names = present()
    if len(names) <= count:
        return None
    if locks is None:
        locks = Path(tempfile.gettempdir()) / f"ontogeny-gpus-{getpass.getuser()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    chosen: list[str] = []
    turn = 0
    while len(chosen) < count:
        for name in names:
            if len(chosen) < count and name not in chosen and _lock(locks / f"{name}.{turn}"):
                chosen.append(name)
        turn += 1
    os.environ[VISIBLE] = ",".join(chosen)
    return os.environ[VISIBLE]


def _lock(path: Path) -> bool:
    """Lock a file until this process ends; False where another holds it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if hold(file) is False:
        os.close(file)
        return False
    _held.append(file)
    return True
