"""One GPU per process, if several jobs run on one machine.

`snakemake --resources gpu=4` lets four jobs run that need a GPU, but does not assign one to each.
Each process takes one by locking a file for that GPU; the system releases the lock when the process
ends in any way. When all GPUs have a process, they get a second one each, and so on: a user who
allows more jobs than there are GPUs wants them to be shared.

Nothing is done here if GPUs are already assigned, by SLURM or by CUDA_VISIBLE_DEVICES. Torch is not
imported, since it must start after the choice.
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
NAMED = "ONTOGENY_GPUS"  # names of this machine's GPUs, with commas; the driver is then not asked
HANDED_OUT = ("SLURM_JOB_ID", "LOCAL_RANK", VISIBLE)  # set if GPUs are assigned by something else
ALLOCATED = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS")  # set if a job was given GPUs
HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide all
DEV = Path("/dev")

_held: list[int] = []  # file descriptors: the locks last as long as the process


def present() -> list[str]:
    """Names of this machine's GPUs as in CUDA_VISIBLE_DEVICES; [] if none is found."""
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
    """Evidence that this process has a GPU, such as "SLURM_JOB_GPUS=0"; '' if there is none.

    Nothing is checked if CUDA_VISIBLE_DEVICES hides all GPUs, or if ONTOGENY_GPUS lists what there
    is.
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
    """Version of this machine's NVIDIA driver, such as "580.65.06"; '' if there is none."""
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
    """Restrict this process to `count` GPUs that no other process has, and return their names.

    Returns None, and changes nothing, if `device` (the setting) is the CPU or a numbered GPU, if
    GPUs are assigned by something else, or if there are no more than `count`.

    Parameters
    ----------
    locks : folder of the files to lock; by default one for each user of this machine.
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
    """Lock a file until this process ends; False if another process holds it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if hold(file) is False:
        os.close(file)
        return False
    _held.append(file)
    return True
