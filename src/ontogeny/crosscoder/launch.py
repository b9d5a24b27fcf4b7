"""Starting the ranks of a training or a basis on this machine, and ending them (ranks.py).

torch's elastic launcher starts one process per rank and watches all of them. It ends the others if
one has failed or was killed, or if it is asked to stop. A failure is reported once: ranks that
then wait in vain for a message of the failed one are ended.
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

PATIENCE = 10.0  # seconds that a rank waits to be ended after it has lost its peers
INTERFACE = "GLOO_SOCKET_IFNAME"


@record
def _rank(
    work: Callable[..., None], settings: Settings, threads: int, arguments: tuple[Any, ...]
) -> None:
    """The work of each process."""
    devices.use_threads(threads)
    devices.keep_memory()
    tqdm.set_lock(threading.RLock())  # a killed process would leak tqdm's semaphore
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
    """Do some work in this process, or on several ranks, which share the threads of this process.

    Parameters
    ----------
    work : called as work(settings, *arguments, ranks): train.train, stream.train or basis.make;
        with one rank, in this process.
    size : number of ranks.

    Raises
    ------
    InputError : raised by the work, or there are fewer GPUs than ranks.
    SystemExit : a rank failed or was killed, which is reported on stderr; or this process was.
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
    logging.disable()  # the launcher would report again what is reported below
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
    """Report how a rank ended, and end this process in the same way."""
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
