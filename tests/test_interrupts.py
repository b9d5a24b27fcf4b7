"""Interrupted processes end in seconds, and a run waits for what another has left at work."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from ontogeny import interrupts

SLEEPER = "import sys, time; print('here', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
# A run of two jobs, one of which does not end when it is asked to.
RUN = """
import subprocess, sys, time
from ontogeny import interrupts
interrupts.GRACE = 0.5
interrupts.end_with_jobs(local=True)
for code in sys.argv[1:]:
    subprocess.Popen(f"{sys.executable} -c \\"{code}\\" | cat", shell=True)
time.sleep(60)
"""
# A run whose main thread waits for a lock while another thread receives the signal.
ELSEWHERE = """
import signal, subprocess, sys, threading
from ontogeny import interrupts
if sys.argv[1] == "again":
    interrupts.end_with_jobs(local=True)
interrupts.end_with_jobs(local=True)
job = subprocess.Popen([sys.executable, "-c", sys.argv[2]])
def receive():
    sys.stdin.readline()
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
threading.Thread(target=receive, daemon=True).start()
threading.Semaphore(0).acquire()
"""
COMMAND = """
import sys, time
from pathlib import Path
from ontogeny import process
from ontogeny.files import whole
with process.interruptible(), whole(sys.argv[1]) as draft:
    draft.write_text("half")
    print("here", flush=True)
    time.sleep(60)
"""


def heard() -> None:
    """Take signals as a program in a terminal does, though the tests run under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(code: str, *words: object, lines: int = 1) -> subprocess.Popen[str]:
    """A Python process that has said so many lines."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heard,
    )
    assert [process.stdout.readline() for _ in range(lines)] == ["here\n"] * lines
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_ends_with_its_jobs_and_says_how_to_go_on(number):
    run = started(RUN, SLEEPER, STUBBORN, lines=2)
    below = psutil.Process(run.pid).children(recursive=True)
    assert len(below) >= 4
    begun = time.monotonic()
    run.send_signal(number)
    said = run.communicate(timeout=20)[1]
    assert time.monotonic() - begun < 15  # though others work on the machine too
    assert run.returncode == 128 + number
    assert said.startswith(
        "Interrupted. Finished work is kept; the same command continues from here"
    )
    assert said.count("\n") == 1
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below)


@pytest.mark.parametrize("calls", ["once", "again"])
def test_a_signal_that_another_thread_receives_ends_the_run(calls):
    run = subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, calls, SLEEPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "here\n"
    (job,) = psutil.Process(run.pid).children()
    said = run.communicate("go\n", timeout=20)[1]
    assert run.returncode == 128 + signal.SIGTERM
    assert said.startswith("Interrupted. Finished work is kept")
    assert said.count("\n") == 1
    assert not job.is_running() or job.status() == psutil.STATUS_ZOMBIE


def test_a_job_that_is_just_starting_ends_too():
    """Shells that start processes one by one while the processes below this one are listed."""
    for number in range(20):
        sleeper = f"sleep {1000 + number}.25"
        jobs = [
            subprocess.Popen(["sh", "-c", f"for i in 1 2 3 4 5 6 7 8 9; do {sleeper} & done; wait"])
            for _ in range(2)
        ]
        time.sleep(number * 0.0005)
        interrupts.end_children(grace=5)
        assert all(job.wait() == -signal.SIGKILL for job in jobs)
        left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == sleeper.split()]
        for process in left:
            process.kill()
        assert not left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_interrupted_leaves_no_draft_and_no_traceback(tmp_path, number):
    command = started(COMMAND, tmp_path / "made.txt")
    assert list(tmp_path.iterdir())
    command.send_signal(number)
    assert command.communicate(timeout=20)[1] == ""
    assert command.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_the_closing_line_repeats_the_command(monkeypatch):
    monkeypatch.delenv("MAKELEVEL", raising=False)
    monkeypatch.setattr(sys, "argv", ["/x/bin/snakemake", "--configfile", "my run.yaml"])
    assert interrupts.closing_line().endswith(": snakemake --configfile 'my run.yaml'")
    monkeypatch.setattr(sys, "argv", ["/x/snakemake/__main__.py", "-n"])
    assert interrupts.closing_line().endswith(": python -m snakemake -n")
    monkeypatch.setenv("MAKELEVEL", "1")
    assert interrupts.closing_line().endswith("the same command continues from here")


def test_a_run_waits_for_jobs_that_another_has_left(tmp_path, capsys):
    folder = tmp_path / "results/mine"
    folder.mkdir(parents=True)
    program = tmp_path / "ontogeny"
    program.write_text("import time\nprint('here', flush=True)\ntime.sleep(3)\n")
    job = subprocess.Popen(
        [sys.executable, str(program), "train", "results/mine", "main", "--seed", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout.readline() == "here\n"
    assert interrupts.at_work(tmp_path / "results/other") == []
    command = "ontogeny train results/mine main --seed 0"
    assert interrupts.at_work(folder) == [(job.pid, command)]
    interrupts.wait_for_others(folder)
    assert job.poll() is not None
    said = capsys.readouterr().err
    assert said == (
        f"{folder}: waiting for `{command}`, process {job.pid}, which an earlier run left "
        f"running; `kill {job.pid}` ends it\n"
    )
    job.communicate()


def test_our_own_process_is_none_that_is_waited_for(tmp_path):
    words = [sys.executable, "-c", "import ontogeny.interrupts as i; print(i.at_work('.'))"]
    done = subprocess.run([*words, "."], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "[]\n"
