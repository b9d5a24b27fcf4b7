"""Snapshots from a hub, fetched by processes of their own from a real server on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HANGS, ROOT
from hub_server import HubServer
from safetensors.numpy import load_file, save

MODEL = "someone/model"
SHARDS = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
SHARD_BYTES = 200_000

# Evaluates each argument in turn; a call that fails yields its one line.
CLIENT = """
import json, os, sys, time
from pathlib import Path
from ontogeny.files import InputError
from ontogeny.settings import Hub
from ontogeny.snapshots import hub
settings = Hub(**json.loads(sys.argv[1]))

def meet(folder, count):
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    while len(os.listdir(folder)) < count:
        time.sleep(0.01)

done = []
for call in sys.argv[2:]:
    try:
        done.append(eval(call))
    except InputError as error:
        done.append(f"InputError: {error}")
print(json.dumps(done))
"""


def begin(
    server: HubServer, home: Path, *calls: str, env: dict[str, str] | None = None, **settings: Any
) -> subprocess.Popen[str]:
    """Start a client whose cache is in `home`; `settings` are those of snapshots.hub."""
    given = {"repository": MODEL, "revision": "step{step}"} | settings
    environment = server.environment(home, PYTHONPATH=str(ROOT / "src")) | (env or {})
    words = [sys.executable, "-W", "error", "-c", CLIENT, json.dumps(given), *calls]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment)


def client(server: HubServer, home: Path, *calls: str, **more: Any) -> list[Any]:
    """What the calls returned in a client of their own."""
    process = begin(server, home, *calls, **more)
    said, complained = process.communicate(timeout=HANGS)
    assert process.returncode == 0, complained
    return json.loads(said)


def fetch(output: Path, step: int = 100, more: str = "") -> str:
    return f"hub.publish(settings, {step}, Path({str(output)!r}){more})"


def sharded(seed: int) -> dict[str, bytes]:
    """A repository's files: three shards of safetensors, their index and a configuration."""
    random = np.random.default_rng(seed)
    files: dict[str, bytes] = {"config.json": b'{"model_type": "gpt2"}'}
    where = {}
    for i, name in enumerate(SHARDS):
        tensor = random.standard_normal(SHARD_BYTES // 4, dtype=np.float32)
        files[name] = save({f"w{i}": tensor}, metadata={"format": "pt"})
        where[f"w{i}"] = name
    index = {"metadata": {"total_size": 3 * SHARD_BYTES}, "weight_map": where}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files


FILES = sharded(0)


def same(output: Path, files: dict[str, bytes] = FILES) -> bool:
    """Whether a snapshot holds exactly these files, and tells their digests and sizes."""
    about = json.loads((output / "source.json").read_text())
    told = {name: (file["sha256"], file["size"]) for name, file in about["files"].items()}
    wanted = {name: (hashlib.sha256(b).hexdigest(), len(b)) for name, b in files.items()}
    held = {path.name: path.read_bytes() for path in output.iterdir()}
    held.pop("source.json")
    return told == wanted and held == files


@pytest.fixture
def server():
    with HubServer() as hub:
        hub.add(MODEL, "step100", FILES)
        yield hub


@pytest.mark.parametrize(
    ("behaviour", "times", "gets"),
    [
        ("cut", 2, [None, "bytes", "bytes"]),
        ("stall", 1, [None, "bytes"]),
        ("error", 2, [None, None, None]),
        ("busy", 2, [None, None, None]),
        ("wrong", 2, [None, None, None]),
        ("slow", None, [None]),
    ],
)
def test_misbehaviour_is_survived(server, tmp_path, behaviour, times, gets) -> None:
    server.misbehave(SHARDS[1], behaviour, times, rate=SHARD_BYTES)
    out = tmp_path / "out"
    env = {"HF_HUB_DOWNLOAD_TIMEOUT": "2"} if behaviour == "stall" else {}
    slow_imports = "[name for name in ('torch', 'transformers') if name in sys.modules]"
    assert client(server, tmp_path / "home", fetch(out), slow_imports, env=env) == [None, []]
    assert same(out)
    ranges = [request.range for request in server.gets(SHARDS[1])]
    assert [r and r.partition("=")[0] for r in ranges] == gets
    for name in FILES:
        assert len(server.gets(name)) == (len(gets) if name == SHARDS[1] else 1)
    body = len(FILES[SHARDS[1]])
    if behaviour == "busy":  # it asks for a second
        first, second, _ = (request.at for request in server.gets(SHARDS[1]))
        assert second - first >= 1
    if behaviour == "cut":  # half of the body, half of the other half, the rest
        assert [request.sent for request in server.gets(SHARDS[1])] == [
            body // 2,
            (body - body // 2) // 2,
            body - body // 2 - (body - body // 2) // 2,
        ]


def test_bytes_that_stay_wrong_are_one_line(server, tmp_path) -> None:
    server.misbehave(SHARDS[1], "wrong")
    (said,) = client(server, tmp_path / "home", fetch(tmp_path / "out"))
    body = FILES[SHARDS[1]]
    flipped = bytes([body[0] ^ 1]) + body[1:-1] + bytes([body[-1] ^ 1])
    for words in (SHARDS[1], hashlib.sha256(body).hexdigest(), hashlib.sha256(flipped).hexdigest()):
        assert words in said
    assert "\n" not in said
    assert len(server.gets(SHARDS[1])) == 3
    assert not (tmp_path / "out").exists()
    blobs = tmp_path / "home/hub/models--someone--model/blobs"
    assert not list(blobs.glob(f"{hashlib.sha256(body).hexdigest()}*"))


def test_small_files_are_verified_too(server, tmp_path) -> None:
    server.misbehave("config.json", "wrong", 1)
    assert client(server, tmp_path / "home", fetch(tmp_path / "out")) == [None]
    assert same(tmp_path / "out")
    assert len(server.gets("config.json")) == 2


def test_a_hub_that_stays_broken_is_one_line(server, tmp_path) -> None:
    server.misbehave(SHARDS[0], "error")
    quick = "setattr(hub, 'LONGEST_PAUSE', 0.01)"
    _, said = client(server, tmp_path / "home", quick, fetch(tmp_path / "out"))
    assert said.startswith(
        "InputError: snapshots.hub: cannot download someone/model at step100 from"
    )
    assert "500" in said
    assert "\n" not in said
    assert len(server.gets(SHARDS[0])) == 5


def test_a_killed_fetch_goes_on_where_it_was(server, tmp_path) -> None:
    cut = SHARDS[2]
    server.misbehave(cut, "slow", rate=50_000)
    process = begin(server, tmp_path / "home", fetch(tmp_path / "out"))
    blobs = tmp_path / "home/hub/models--someone--model/blobs"
    part = blobs / f"{hashlib.sha256(FILES[cut]).hexdigest()}.incomplete"
    others = [hashlib.sha256(FILES[name]).hexdigest() for name in SHARDS[:2]]
    until = time.monotonic() + HANGS
    while not (
        part.exists()
        and part.stat().st_size > 20_000
        and all((blobs / name).exists() for name in others)
    ):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out").exists()
    have = part.stat().st_size
    assert 20_000 < have < len(FILES[cut])
    server.behave()

    assert client(server, tmp_path / "home", fetch(tmp_path / "out")) == [None]
    assert same(tmp_path / "out")
    assert [name for name in FILES if server.gets(name)] == [cut]
    (get,) = server.gets(cut)
    assert get.range == f"bytes={have}-"
    assert get.sent == len(FILES[cut]) - have


def test_finished_is_not_fetched_twice_and_the_cache_suffices_offline(server, tmp_path) -> None:
    home, out, again = tmp_path / "home", tmp_path / "out", tmp_path / "again"
    client(server, home, fetch(out))
    server.behave()
    assert client(server, home, fetch(out)) == [None]
    assert server.requests == []

    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        quick = "setattr(hub, 'LONGEST_PAUSE', 0.01)"
        _, *said = client(
            server, home, quick, fetch(again), "hub.fetch_config(settings, 100)", env=env
        )
        assert said == [None, {"model_type": "gpt2"}]
        assert same(again)
        for path in again.iterdir():
            path.unlink()
        again.rmdir()
    assert server.requests == []

    blob = home / "hub/models--someone--model/blobs" / hashlib.sha256(FILES[SHARDS[0]]).hexdigest()
    blob.unlink()
    (said,) = client(server, home, fetch(again), env={"HF_HUB_OFFLINE": "1"})
    assert said.startswith("InputError: ")
    assert SHARDS[0] in said


def test_a_damaged_cache_is_mended(server, tmp_path) -> None:
    home = tmp_path / "home"
    client(server, home, fetch(tmp_path / "out"))
    blob = home / "hub/models--someone--model/blobs" / hashlib.sha256(FILES[SHARDS[0]]).hexdigest()
    blob.unlink()  # out shares its bytes
    blob.write_bytes(b"\0" * SHARD_BYTES)
    server.behave()
    assert client(server, home, fetch(tmp_path / "again")) == [None]
    assert same(tmp_path / "again")
    assert [name for name in FILES if server.gets(name)] == [SHARDS[0]]


def test_only_what_is_needed_is_fetched(server, tmp_path) -> None:
    rest = ["flax_model.msgpack", "tf_model.h5", "model.onnx", "optimizer.pt", "README.md",
            "pytorch_model.bin", "model.fp16.safetensors", "training_args.bin"]  # fmt: skip
    also = {"modeling.py": b"raise SystemExit('run')\n"}
    server.add(MODEL, "step200", sharded(2) | also | dict.fromkeys(rest, b"x" * 5000))
    server.behave()
    home, out = tmp_path / "home", tmp_path / "out"
    assert client(server, home, fetch(out, 200)) == [None]
    assert same(out, sharded(2))
    asked = {request.file for request in server.requests} - {None}
    assert asked == set(sharded(2))
    # the finished folder lacks the code, which is all that is fetched for it
    server.behave()
    assert client(server, home, fetch(out, 200, ", remote_code=True")) == [None]
    assert same(out, sharded(2) | also)
    assert {r.file for r in server.requests if r.method == "GET"} - {None} == {"modeling.py"}


def test_what_two_steps_share_is_fetched_once(server, tmp_path) -> None:
    files = sharded(3) | {SHARDS[0]: FILES[SHARDS[0]]}
    server.add(MODEL, "step200", files)
    out = [tmp_path / "100", tmp_path / "200"]
    assert client(server, tmp_path / "home", fetch(out[0]), fetch(out[1], 200)) == [None, None]
    assert same(out[1], files)
    assert len(server.gets("config.json")) == len(server.gets(SHARDS[0])) == 1
    assert len(server.gets(SHARDS[1])) == 2


def test_the_token_goes_to_the_endpoint_alone(tmp_path) -> None:
    with HubServer(cdn=True) as server:
        server.tokens = {"good"}
        server.add(MODEL, "step100", FILES, gated=True)
        home = tmp_path / "home"
        assert client(server, home, fetch(tmp_path / "out"), env={"HF_TOKEN": "good"}) == [None]
        assert same(tmp_path / "out")
        elsewhere = [request for request in server.requests if request.host == "cdn"]
        assert sorted(request.file or "" for request in elsewhere) == SHARDS
        assert {request.token for request in elsewhere} == {None}
        here = [request for request in server.requests if request.host == "hub"]
        assert {request.token for request in here} == {"good"}

        look = "hub.faults(settings, [100])"
        said = client(
            server, tmp_path / "empty", fetch(tmp_path / "no"), look, env={"HF_TOKEN": "bad"}
        )
        wanted = f"snapshots.hub.repository: {server.endpoint} refuses the token; renew HF_TOKEN"
        assert said == [f"InputError: {wanted}", [wanted]]
        (said,) = client(server, tmp_path / "empty", fetch(tmp_path / "no"))
        assert said == (
            f"InputError: snapshots.hub.repository: {MODEL} is gated; accept its terms at "
            f"{server.endpoint}/{MODEL} and set HF_TOKEN"
        )
        said, (fault,) = client(
            server, tmp_path / "empty", fetch(tmp_path / "no"), look, repository="someone/none"
        )
        assert said == f"InputError: {fault}"
        assert fault == (
            f"snapshots.hub.repository: someone/none is not on {server.endpoint}, or is private; "
            "correct it, or set HF_TOKEN"
        )


@pytest.mark.parametrize("shared", [True, False])
def test_processes_share_the_limit(server, tmp_path, shared) -> None:
    server.add(MODEL, "step200", sharded(1))
    for name in SHARDS:
        server.misbehave(name, "slow", rate=2 * SHARD_BYTES)
    slots = f", slots=Path({str(tmp_path / 'slots')!r})" if shared else ""
    meet = f"meet(Path({str(tmp_path / 'meet')!r}), 2)"
    processes = [
        begin(server, tmp_path / "home", meet, fetch(tmp_path / str(step), step, slots), parallel=2)
        for step in (100, 200)
    ]
    for process in processes:
        said, complained = process.communicate(timeout=HANGS)
        assert (process.returncode, said) == (0, "[null, null]\n"), complained
    assert same(tmp_path / "100")
    assert same(tmp_path / "200", sharded(1))
    # two processes of two files each; without slots nothing holds them back
    assert server.most_at_once == 2 if shared else server.most_at_once > 2


def test_revisions_by_a_listing(server, tmp_path) -> None:
    server.add(MODEL, "step200-tokens2B", FILES)
    server.add(MODEL, "step2000-tokens20B", FILES, tag=True)
    server.add(MODEL, "step300-tokens3B", FILES)
    server.add(MODEL, "step300-tokens4B", FILES)
    said = client(
        server,
        tmp_path / "home",
        "hub.revisions(settings, [200, 2000])",
        "hub.revisions(settings, [300])",
        "hub.revisions(settings, [400])",
        "hub.faults(settings, [200, 300, 400])",
        fetch(tmp_path / "out", 200),
        revision="step{step}-tokens*",
    )
    both = (
        "snapshots.hub.revision: step300-tokens3B and step300-tokens4B of someone/model both fit "
        "step{step}-tokens* at step 300; narrow the pattern"
    )
    none = (
        "snapshots.steps: someone/model has no step 400 (revision step400-tokens*); "
        "nearest: 200, 300"
    )
    assert said == [
        {"200": "step200-tokens2B", "2000": "step2000-tokens20B"},
        f"InputError: {both}",
        f"InputError: {none}",
        [both, none],
        None,
    ]
    assert json.loads((tmp_path / "out/source.json").read_text())["revision"] == "step200-tokens2B"
    # * eats no digit of a step, and the cache's own names do offline
    found = client(
        server,
        tmp_path / "home",
        "hub.revisions(settings, [200])",
        fetch(tmp_path / "again", 200),
        revision="step{step}*",
        env={"HF_HUB_OFFLINE": "1"},
    )
    assert found == [{"200": "step200-tokens2B"}, None]


def test_revisions_without_a_listing_ask_nothing(server, tmp_path) -> None:
    (found, said) = client(
        server,
        tmp_path,
        "hub.revisions(settings, [0, 20])",
        "hub.revisions(settings.model_copy(update={'revision': '{step}-{seed}'}), [0])",
        revision="ckpt_{step:03d}",
    )
    assert found == {"0": "ckpt_000", "20": "ckpt_020"}
    assert said.startswith("InputError: snapshots.hub.revision: {step}-{seed} is not a pattern; ")
    assert server.requests == []


def test_missing_steps_are_told_with_the_nearest(server, tmp_path) -> None:
    for step in (1000, 2000, 4000):
        server.add(MODEL, f"step{step}", FILES)
    wanted = (
        "snapshots.steps: someone/model has no step 1500 (revision step1500); nearest: 1000, 2000"
    )
    look, get = "hub.faults(settings, [100, 1500])", fetch(tmp_path / "out", 1500)
    said = client(server, tmp_path / "home", look, get, "hub.fetch_config(settings, 1500)")
    assert said == [[wanted], f"InputError: {wanted}", f"InputError: {wanted}"]
    # a hub that is away is no fault, and the job tells
    for env, told in (
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network"),
        ({"HF_ENDPOINT": f"{server.endpoint}/portal"}, "does not answer like a hub"),
    ):
        quick = "setattr(hub, 'LONGEST_PAUSE', 0.01)"
        _, faults, said = client(server, tmp_path / "home", quick, look, get, env=env)
        assert faults == []
        assert said.startswith("InputError: snapshots.hub: ")
        assert "someone/model at step1500" in said
        assert told in said
        assert "\n" not in said


def test_presets_tell_what_the_hub_cannot(server, tmp_path) -> None:
    look = "hub.faults(settings, [1000, 1500])"
    pythia = {"repository": "EleutherAI/pythia-160m", "revision": None}
    away = {"HF_HUB_OFFLINE": "1"}
    assert client(server, tmp_path, look, env=away, **pythia) == [
        ["snapshots.steps: EleutherAI/pythia-160m has no step 1500; nearest: 1000, 2000"]
    ]
    server.add("EleutherAI/pythia-160m", "step1000", FILES)
    assert client(server, tmp_path, look, **pythia) == [
        [
            "snapshots.steps: EleutherAI/pythia-160m has no step 1500 (revision step1500); "
            "nearest: 1000"
        ]
    ]
    assert client(server, tmp_path, look, revision=None) == [
        [
            "snapshots.hub.revision: missing, and someone/model has no preset; name its "
            "revisions, such as step{step}"
        ]
    ]


def test_repositories_without_weights_or_with_a_false_index(server, tmp_path) -> None:
    server.add(MODEL, "step1", {"config.json": "{}", "tf_model.h5": "x"})
    server.add(MODEL, "step2", {"model.safetensors": FILES[SHARDS[0]]})
    server.add(MODEL, "step3", {name: b for name, b in FILES.items() if name != SHARDS[1]})
    index = json.dumps({"weight_map": {"w": "../../../stolen.safetensors"}})
    server.add(MODEL, "step4", FILES | {"model.safetensors.index.json": index.encode()})
    calls = [fetch(tmp_path / "out", step) for step in (1, 2, 3, 4)]
    no_weights, no_config, no_shard, outside = client(server, tmp_path / "home", *calls)
    assert "step1 has no model.safetensors or pytorch_model.bin" in no_weights
    assert "step2 has no config.json" in no_config
    assert f"step3 has no {SHARDS[1]}, which model.safetensors.index.json names" in no_shard
    assert "names '../../../stolen.safetensors', which is not a .safetensors file beside" in outside
    assert not (tmp_path / "out").exists()


def test_tokenizers(server, tmp_path) -> None:
    files = {"tokenizer.json": "{}", "tokenizer_config.json": "{}", "vocab.json": "{}"}
    rest = {"merges.txt": "", "special_tokens_map.json": "{}", "notes.txt": "", "t.py": "x"}
    server.add(MODEL, "step200", FILES | {k: v.encode() for k, v in (files | rest).items()})
    server.add(MODEL, "main", {"tokenizer.json": "main"})
    server.add("someone/words", "main", {"tokenizer.model": "words", "config.json": "{}"})
    server.add("someone/nothing", "main", {"vocab.md": "x"})

    def get(name: str, steps: list[int], where: str = "settings") -> str:
        return f"hub.tokenizer({where}, {steps}, Path({str(tmp_path / name)!r}))"

    def other(name: str) -> str:
        return f"settings.model_copy(update={{'tokenizer': {name!r}}})"

    said = client(
        server,
        tmp_path / "home",
        get("last", [100, 200]),
        get("main", [100]),
        get("words", [200], other("someone/words")),
        get("nothing", [200], other("someone/nothing")),
        get("none", [200], other("someone/none")),
    )
    assert said[:3] == [None, None, None]
    assert said[3].startswith("InputError: snapshots.hub.tokenizer: someone/nothing has no token")
    assert said[4].startswith("InputError: snapshots.hub.tokenizer: someone/none is not on ")
    last = {path.name for path in (tmp_path / "last").iterdir()}
    made_of = {*files, *rest, "config.json", "source.json"} - {"notes.txt", "t.py"}
    assert last == made_of
    assert (tmp_path / "main/tokenizer.json").read_text() == "main"
    assert (tmp_path / "words/tokenizer.model").read_text() == "words"
    assert not (tmp_path / "nothing").exists()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A tiny GPT-2 with tied embeddings, and its pickled weights, in one file and in two."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    state = model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    folder = tmp_path_factory.mktemp("gpt2")
    names = list(state)
    parts = {
        f"pytorch_model-{i:05d}-of-00002.bin": {name: state[name] for name in some}
        for i, some in ((1, names[:9]), (2, names[9:]))
    }
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    for kind, files in (("whole", {"pytorch_model.bin": state}), ("sharded", parts)):
        (folder / kind).mkdir()
        config.save_pretrained(folder / kind)
        for file, part in files.items():
            torch.save(part, folder / kind / file)
    (folder / "sharded/pytorch_model.bin.index.json").write_text(json.dumps(index))
    return model, folder


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_pickled_weights_become_safetensors(server, tmp_path, gpt2, kind) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, folder = gpt2
    server.add(MODEL, "step7", folder / kind)
    home, out = tmp_path / "home", tmp_path / "out"
    assert client(server, home, fetch(out, 7)) == [None]
    weights = sorted(path.name for path in out.glob("*.safetensors"))
    bins = sorted(path.name for path in (folder / kind).glob("*.bin"))
    assert weights == (
        ["model.safetensors"]
        if kind == "whole"
        else ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    )
    assert (out / "model.safetensors.index.json").exists() == (kind == "sharded")
    loaded = AutoModelForCausalLM.from_pretrained(out, use_safetensors=True).eval()
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    stored = {name for path in out.glob("*.safetensors") for name in load_file(path)}
    assert stored == set(model.state_dict())
    about = json.loads((out / "source.json").read_text())
    assert sorted(about["converted"]) == bins
    for name in bins:
        digest = hashlib.sha256((folder / kind / name).read_bytes()).hexdigest()
        assert about["converted"][name]["sha256"] == digest
    # what was downloaded for this alone is gone from the cache, and finished stays finished
    blobs = list((home / "hub/models--someone--model/blobs").iterdir())
    assert {path.read_bytes()[:1] for path in blobs} == {b"{"}
    server.behave()
    assert client(server, home, fetch(out, 7)) == [None]
    assert server.requests == []


def test_pickled_weights_that_were_in_the_cache_stay(server, tmp_path, gpt2) -> None:
    server.add(MODEL, "step7", gpt2[1] / "whole")
    home = tmp_path / "home"
    get = "hf_hub_download(settings.repository, 'pytorch_model.bin', revision='step7')"
    (path,) = client(server, home, f"__import__('huggingface_hub').{get}")
    assert client(server, home, fetch(tmp_path / "out", 7)) == [None]
    assert os.path.exists(path)
    assert len(server.gets("pytorch_model.bin")) == 1


def test_progress_is_readable_in_a_log(server, tmp_path) -> None:
    process = begin(server, tmp_path / "home", fetch(tmp_path / "out"))
    _, said = process.communicate(timeout=HANGS)
    lines = said.splitlines()
    total = sum(map(len, FILES.values()))
    assert lines[-1].startswith(f"step 100: {total / 1000:.0f}k of {total / 1000:.0f}k B (100%)")
    assert "\r" not in said


def test_xet_that_fails_gives_way_to_plain_http(tmp_path) -> None:
    with HubServer(xet=True) as server:
        server.add(MODEL, "step100", FILES)
        assert client(server, tmp_path / "home", fetch(tmp_path / "out")) == [None]
        assert same(tmp_path / "out")
        assert [r.path for r in server.requests if r.status == 404 and "xet" in r.path]
        assert [len(server.gets(name)) for name in SHARDS] == [1, 1, 1]


def test_the_server_streams_datasets(server, tmp_path) -> None:
    import pandas as pd

    rows = [f"row {i}" for i in range(5)]
    pd.DataFrame({"text": rows}).to_parquet(tmp_path / "rows.parquet")
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    bodies = {"jsonl": lines.encode(), "parquet": (tmp_path / "rows.parquet").read_bytes()}
    for kind, body in bodies.items():
        server.add(f"someone/{kind}", "main", {f"data/train.{kind}": body}, kind="dataset")
    code = (
        "import json\nfrom datasets import load_dataset\n"
        "for name in 'jsonl', 'parquet':\n"
        "    rows = load_dataset(f'someone/{name}', split='train', streaming=True)\n"
        "    print(json.dumps([row['text'] for row in rows]))"
    )
    words = [sys.executable, "-c", code]
    env = server.environment(tmp_path / "home")
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=HANGS)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [rows, rows], done.stderr
    for kind, body in bodies.items():
        assert server.sent(f"data/train.{kind}") >= len(body)
