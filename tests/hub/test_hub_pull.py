"""`apr pull` against a local server that speaks the hub's protocol, faults included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from apr_core.runtime import human_bytes
from tests import tiny_checkpoints
from tests.hub.hub_server import COMMIT, Hub

SHARD = "model.safetensors-00001-of-00002.safetensors"
SECOND = "model.safetensors-00002-of-00002.safetensors"


def random_bytes(n, seed):
    return np.random.default_rng(seed).bytes(n)


@pytest.fixture
def hub():
    index = {"metadata": {}, "weight_map": {"a": SHARD, "b": SECOND}}
    served = Hub(
        {
            "config.json": b'{"architectures": []}',
            "tokenizer.json": b"{}",
            "tokenizer_config.json": b"{}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            SHARD: random_bytes(6 << 20, 1),
            SECOND: random_bytes(1 << 20, 2),
            "original/model.safetensors": random_bytes(1 << 17, 3),
            "pytorch_model.bin": b"not wanted",
            "preprocessor_config.json": b"{}",
            "README.md": b"# model",
        }
    )
    yield served
    served.close()


class Apr:
    """Runs `apr` with its own hub cache, against the server."""

    def __init__(self, hub, home):
        self.home = home
        keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        self.env = keep | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}

    def __call__(self, *args, prelude=(), **env):
        command = [*prelude, sys.executable, "-m", "apr_core.cli", *args]
        return subprocess.run(command, env=self.env | env, capture_output=True, text=True)

    def leftovers(self):
        return list(self.home.rglob("*.apr-incomplete"))


@pytest.fixture
def apr(hub, tmp_path):
    return Apr(hub, tmp_path / "hf")


def test_pulls_what_is_needed_and_nothing_twice(hub, apr):
    first = apr("pull", "hf://org/model", "--json")
    assert first.returncode == 0 and first.stderr == "downloading 7.0 MiB: hf://org/model\n"
    result = json.loads(first.stdout)
    assert result["commit"] == COMMIT
    assert set(result["files"]) == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        SHARD,
        SECOND,
    }
    for name in (SHARD, SECOND, "config.json"):
        assert Path(result["path"], name).read_bytes() == hub.files[name]
    sent = hub.sent.copy()
    assert apr("pull", "hf://org/model").returncode == 0
    assert hub.sent == sent
    assert not apr.leftovers()


@pytest.mark.needs_plugins
def test_says_where_it_is_and_what_comes_next(apr):
    done = apr("pull", "hf://org/model@main")
    assert done.returncode == 0
    assert "next: apr import hf://org/model --quantize q4k -o model-q4k.apr" in done.stdout


def test_import_and_offline_find_it_without_the_network(hub, apr):
    assert apr("pull", "hf://org/model").returncode == 0
    hub.close()
    again = apr("pull", "hf://org/model", "--offline", "--json")
    assert again.returncode == 0 and SHARD in json.loads(again.stdout)["files"]
    assert apr("pull", "hf://org/model", HF_HUB_OFFLINE="1").returncode == 0
    refusal = apr("import", "hf://org/model", "-o", str(apr.home / "x.apr"))
    assert "no installed plugin reads architecture" in refusal.stderr


@pytest.mark.needs_plugins
def test_what_is_not_here_is_pulled_and_imported_by_the_command_that_needs_it(hub, apr, tmp_path):
    checkpoint = tiny_checkpoints.write(tmp_path / "checkpoint")
    hub.files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    needed = sum(map(len, hub.files.values()))
    apr.env["APR_STORE"] = str(tmp_path / "store")
    first = apr("inspect", "hf://org/model", "--json")
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith(
        f"downloading {human_bytes(needed)}: hf://org/model\n"
        "importing hf://org/model into the model store, recipe q4k\n"
    )
    hub.close()  # neither the hub nor its client is asked again
    for name in ("hf://org/model", "model"):
        again = apr("inspect", name, "--json")
        assert (again.stdout, again.stderr) == (first.stdout, "")
    unknown = apr("run", "hf://org/other", "x", HF_HUB_OFFLINE="1")
    assert unknown.returncode == 3 and "not on this machine, and offline" in unknown.stderr
    assert json.loads(first.stdout)["metadata"]["source"] == "hf://org/model"


def test_offline_without_it(apr):
    missing = apr("pull", "hf://org/model", "--offline")
    assert missing.returncode == 3 and "Pull it online first" in missing.stderr


def test_one_cut_is_mended_within_the_call(hub, apr):
    hub.faults.cut_after, hub.faults.cuts = 2 << 20, 1
    assert apr("pull", "hf://org/model").returncode == 0
    assert hub.sent[SHARD] < 1.5 * len(hub.files[SHARD])


def test_a_dead_connection_is_resumed_by_the_next_call(hub, apr):
    hub.faults.cut_after, hub.faults.cuts = 3 << 20, 1
    original = hub._file

    def die_after_the_cut(h, revision, name, body):
        if hub.faults.cuts == 0 and name == SHARD and body:
            h.close_connection = True
            return
        original(h, revision, name, body)

    hub._file = die_after_the_cut
    failed = apr("pull", "hf://org/model")
    assert failed.returncode == 7
    assert "the same command continues" in failed.stderr
    assert len(apr.leftovers()) == 1
    hub._file = original
    before = hub.sent[SHARD]
    assert apr("pull", "hf://org/model").returncode == 0
    assert hub.sent[SHARD] - before <= len(hub.files[SHARD]) - (2 << 20)
    assert not apr.leftovers()


def test_a_server_without_ranges_starts_over(hub, apr):
    hub.faults.cut_after, hub.faults.cuts, hub.faults.no_ranges = 2 << 20, 1, True
    assert apr("pull", "hf://org/model").returncode == 0


def test_altered_bytes_are_never_kept(hub, apr):
    hub.faults.corrupt = {SECOND}
    failed = apr("pull", "hf://org/model")
    assert failed.returncode == 7 and "checksum" in failed.stderr
    assert not apr.leftovers()
    hub.faults.corrupt = set()
    assert apr("pull", "hf://org/model").returncode == 0


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ({"status": 401}, 7, "HF_TOKEN"),
        ({"status": 404}, 3, "no such model"),
        ({"gated": True}, 7, "terms"),
        ({"status": 403}, 7, "refuses access"),
    ],
)
def test_refusals(hub, apr, fault, code, words):
    for key, value in fault.items():
        setattr(hub.faults, key, value)
    refused = apr("pull", "hf://org/model")
    assert refused.returncode == code, refused.stderr
    assert words in refused.stderr and "hint:" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_unknown_revision_and_bad_ids(apr):
    unknown = apr("pull", "hf://org/model@nope")
    assert unknown.returncode == 3 and "'nope'" in unknown.stderr
    for bad in ("model", "hf://org", "hf://../etc/passwd", "hf://org/model@"):
        assert apr("pull", bad).returncode == 2


def test_the_token_is_sent(hub, apr):
    assert apr("pull", "hf://org/model", HF_TOKEN="hf_secret").returncode == 0
    assert "Bearer hf_secret" in hub.tokens


def test_repositories_without_safetensors(hub, apr):
    for name in [n for n in hub.files if "safetensors" in n]:
        del hub.files[name]
    missing = apr("pull", "hf://org/model")
    assert missing.returncode == 3 and "only .bin files" in missing.stderr


def test_an_index_that_points_outside(hub, apr):
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    assert apr("pull", "hf://org/model").returncode == 4


def test_no_server(hub, apr):
    hub.close()
    lost = apr("pull", "hf://org/model")
    assert lost.returncode == 7 and "cannot be reached" in lost.stderr


def test_a_full_disk_keeps_what_is_there(hub, apr):
    """A limit on file sizes makes the kernel refuse writes, as a full disk does."""
    limit = (
        sys.executable,
        "-c",
        "import resource, os, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20));"
        "os.execv(sys.argv[1], sys.argv[1:])",
    )
    full = apr("pull", "hf://org/model", prelude=limit)
    assert full.returncode == 7 and "the same command continues" in full.stderr, full.stderr
    before = hub.sent[SHARD]
    assert apr("pull", "hf://org/model").returncode == 0
    assert hub.sent[SHARD] - before < len(hub.files[SHARD])


def test_interrupted_it_leaves_nothing_that_looks_whole(hub, apr):
    original = hub._send

    def slow(h, name, content):
        if name == SHARD:
            for start in range(0, len(content), 1 << 18):
                original(h, name, content[start : start + (1 << 18)])
                time.sleep(0.05)
        else:
            original(h, name, content)

    hub._send = slow
    process = subprocess.Popen(
        [sys.executable, "-m", "apr_core.cli", "pull", "hf://org/model"],
        env=apr.env, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while hub.sent[SHARD] < 1 << 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130 and "interrupted" in stderr
    assert not list(apr.home.rglob(f"snapshots/*/{SHARD}"))
    hub._send = original
    assert apr("pull", "hf://org/model").returncode == 0
