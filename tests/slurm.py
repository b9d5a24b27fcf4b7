"""A real SLURM of one node on loopback: installed, configured, started, and stopped again.

For root on Debian, without systemd. Two stand-in GPUs, and more memory than there is, so that jobs
that ask for what a real experiment needs are let in. No accounting: `squeue` alone tells how jobs
ended. The daemons read /etc/slurm, which must not belong to another SLURM.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf")
MARK = "# made by tests/slurm.py"
PACKAGES = ("slurm-wlm", "munge")
CONFIGURATION = """{mark}
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MinJobAge=600
KillWait=2
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000000 Gres=gpu:2
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""


def unfit() -> str:
    """Why SLURM cannot be started here; '' where it can."""
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        return "SLURM is installed and started here by root on Debian alone"
    theirs = HOME / FILES[0]
    if theirs.exists() and not theirs.read_text().startswith(MARK):
        return f"{theirs} belongs to another SLURM"
    return ""


def install() -> None:
    """Debian's packages, unless they are there."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"  # the daemons; `su` leaves it out
    if all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged")):
        return
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    words = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *PACKAGES]
    # No daemon starts by itself: nothing here is a service.
    guard = Path("/usr/sbin/policy-rc.d")
    kept = guard.read_bytes() if guard.exists() else None
    guard.write_text("#!/bin/sh\nexit 101\n")
    guard.chmod(0o755)
    try:
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=quiet)
        subprocess.run(words, check=True, env=quiet, stdout=subprocess.DEVNULL)
    finally:
        guard.unlink()
        if kept is not None:
            guard.write_bytes(kept)
            guard.chmod(0o755)


@contextmanager
def running(folder: Path, cpus: int = 2) -> Iterator[None]:
    """SLURM with its files in a folder, inside the block.

    Raises
    ------
    RuntimeError : it does not start; with what its daemons said.
    """
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for n in range(2):
        subprocess.run(["mknod", folder / f"gpu{n}", "c", "1", "3"], check=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    HOME.mkdir(exist_ok=True)
    (HOME / "slurm.conf").write_text(
        CONFIGURATION.format(mark=MARK, host=host, folder=folder, cpus=cpus)
    )
    (HOME / "gres.conf").write_text(f"{MARK}\nNodeName={host} Name=gpu File={folder}/gpu[0-1]\n")
    try:
        munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file",)]
        munge += [f"--socket={folder}/munge.sock", f"--pid-file={folder}/munged.pid"]
        munge += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
        subprocess.run(["munged", "--force", *munge], check=True)
        subprocess.run(["slurmctld", "-i"], check=True)
        subprocess.run(["slurmd"], check=True)
        _wait(folder)
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        for name in ("slurmd", "slurmctld", "munged"):
            _stop(folder / f"{name}.pid")
        for name in FILES:
            (HOME / name).unlink(missing_ok=True)


def _wait(folder: Path, seconds: float = 60) -> None:
    """Until the node takes jobs."""
    said = ""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
        said = done.stdout + done.stderr
        if "idle" in done.stdout:
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    raise RuntimeError(f"no node is idle after {seconds:.0f} s: {said}\n{logs}")


def _stop(pid_file: Path, seconds: float = 10) -> None:
    """End the daemon that wrote a pid file."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.1)
