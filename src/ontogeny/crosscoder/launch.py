"""Starting the ranks of trainings on this machine, and ending as they end (ranks.py).

torch's elastic launcher starts one process per rank, watches all, and ends the others when one has
failed or been killed, or when it is told to end itself. What failed is told once: the ranks that
then miss a message of the one that failed wait to be ended.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    record,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm import tqdm

from ontogeny import devices, progress
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.files import InputError
from ontogeny.peers import PeerLost
from ontogeny.settings import Settings

PATIENCE = 10.0  # seconds that a rank without its peers waits to be ended
INTERFACE = "GLOO_SOCKET_IFNAME"


@record
def _rank(
    work: Callable[..., None], settings: Settings, threads: int, arguments: tuple[Any, ...]
) -> None:
    """What each process does."""
    devices.use_threads(threads)
    devices.keep_memory()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind
    if devices.choose(settings.device).type == "cuda":
        gpu = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(gpu)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=gpu)
    else:
        dist.init_process_group("gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    if ranks.rank:
        progress.hide()
    try:
        work(settings, *arguments, ranks)
    except PeerLost:
        time.sleep(PATIENCE)
        raise
    dist.destroy_process_group()


def on_devices(work: Callable[..., None], settings: Settings, size: int, *arguments: Any) -> None:
    """Do some work in this process, or on several ranks, which share its threads.

    Parameters
    ----------
    work : called as work(settings, *arguments, ranks): train.train, stream.train or basis.make; in
        this process without ranks.
    size : number of ranks.

    Raises
    ------
    InputError : as for the work; there are fewer GPUs than ranks.
    SystemExit : a rank failed or was killed, which is told on stderr; this process was.
    """
    if size == 1:
        return work(settings, *arguments)
    here, threads = torch.cuda.device_count(), torch.get_num_threads()
    if devices.choose(settings.device).type == "cuda" and here < size:
        raise InputError(
            f"crosscoders.*.devices: {size} GPUs are needed, but only {here} can be used here; "
            "lower it"
        )
    loopback = next((n for _, n in socket.if_nameindex() if n in ("lo", "lo0")), None)
    if loopback is not None:
        os.environ.setdefault(INTERFACE, loopback)
    logging.disable()  # the launcher's own account of what is told below
    try:
        with tempfile.TemporaryDirectory() as logs:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=size,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="127.0.0.1:0",
                local_addr="127.0.0.1",
                max_restarts=0,
                monitor_interval=0.1,
                start_method="spawn",
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            elastic_launch(config, _rank)(work, settings, max(1, threads // size), arguments)
    except ChildFailedError as error:
        _tell(*error.get_first_failure(), size)
    except SignalException as signal:
        sys.exit(128 + signal.sigval)
    finally:
        logging.disable(logging.NOTSET)


def _tell(rank: int, failure: ProcessFailure, size: int) -> None:
    """Say how a rank ended, and end as it did."""
    message = failure.error_file_data.get("message")
    if isinstance(message, dict):
        kind, _, text = message["message"].partition(": ")
        if kind == InputError.__name__:
            raise InputError(text)
        print(message["extraInfo"]["py_callstack"], end="", file=sys.stderr)
        how = f"{kind}: {text}"
    elif failure.exitcode < 0:
        how = f"was killed ({failure.signal_name()})"
    else:
        how = f"ended with {failure.exitcode}"
    print(f"ontogeny: rank {rank} of {size}: {how}", file=sys.stderr)
    sys.exit(1)
