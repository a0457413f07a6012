"""`apr bench`: its figures fit together. No test says how long anything may take."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from apr_backend_cpu.backend import Cpu
from apr_core import load
from apr_core.errors import UsageError
from apr_devkit.tiny import tiny_checkpoint
from apr_eval import bench, measuring
from apr_eval.measuring import Plan, Spread, measure, memory_bandwidth, state_bytes
from apr_eval.profiling import profiled
from tests.cli.test_journeys import apr, fails

pytestmark = pytest.mark.needs_plugins


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    target = tmp_path_factory.mktemp("bench") / "demo.apr"
    assert apr("import", "demo://sums", "--quantize", "q4k", "-o", target).returncode == 0
    return target


@pytest.fixture
def model(path):
    with load(path) as loaded:
        yield loaded


def test_json_has_every_figure_and_they_fit_together(path):
    done = apr(
        "bench",
        path,
        "--warmup",
        1,
        "--measure",
        2,
        "--prompt-tokens",
        20,
        "--max-tokens",
        4,
        "--batch",
        3,
        "--profile",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    r = json.loads(done.stdout)
    assert {"load_s", "ttft_s", "prefill_tok_s", "decode_tok_s", "bandwidth_share"} <= set(r)
    assert (r["batch"], r["prompt_tokens"], r["max_tokens"]) == (3, 20, 4)
    for name in ("ttft_s", "prefill_tok_s", "decode_tok_s"):
        assert 0 < r[f"{name}_p10"] <= r[name] <= r[f"{name}_p90"]
    assert r["bytes_per_token"] == pytest.approx((r["weight_bytes"] + r["state_bytes"]) / 3)
    share = r["bytes_per_token"] * r["decode_tok_s"] / r["memory_bandwidth_bytes_s"]
    assert r["bandwidth_share"] == pytest.approx(share)
    assert r["ttft_s"] > 20 / r["prefill_tok_s_p90"] * 0.99
    assert any(key.startswith("linear[") for key in r["bound"])
    assert not r["fallbacks"]
    targets = set(r["bound"].values())
    for rows in (r["profile"]["prefill"], r["profile"]["decode"]):
        assert {row["kernel"] for row in rows if row["op"] != "(between)"} <= targets
        assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_weight_bytes_are_those_of_every_matrix_but_the_embedding(model):
    layers = model.config.num_layers
    expected = sum(
        entry_bytes(model, name)
        for name, entry in model.file.tensors.items()
        if len(entry.shape) == 2 and (model.config.tied_embeddings or "embed_tokens" not in name)
    )
    assert model.bytes_read(1) == model.bytes_read(8) == expected
    assert layers > 1


def test_of_experts_only_the_chosen_ones_are_counted(tmp_path):
    """A token chooses 4 of 6; two tokens choose 6 * (1 - (1/3)^2) of them on average."""
    checkpoint = tiny_checkpoint("qwen3_5_moe", tmp_path / "checkpoint")
    assert apr("import", checkpoint, "--quantize", "q8_0", "-o", tmp_path / "m.apr").returncode == 0
    with load(tmp_path / "m.apr") as model:
        weights = model.matrices()
        stacks = sum(w.data.nbytes for w in weights if len(w.shape) == 3)
        others = sum(w.data.nbytes for w in weights if len(w.shape) == 2)
        assert stacks > others / 10 and len(weights) > 10
        assert model.bytes_read(1) == round(others + stacks * 4 / 6)
        assert model.bytes_read(2) == round(others + stacks * 8 / 9)
        assert measure(model, Plan(4, 1, 2, 0, 1)).weight_bytes == model.bytes_read(2)


def entry_bytes(model, name):
    """Rows on the backend may be padded to whole vectors: the same number of rows, at least."""
    uploaded = {w.name: w.data.nbytes for w in model.matrices()}
    assert uploaded[name] >= model.file.raw(name).nbytes
    return uploaded[name]


def test_slots_are_freed_and_batches_counted(model):
    runs = []
    result = measure(model, Plan(8, 3, 2, 0, 2), lambda: runs.append(1))
    assert len(runs) == 2
    assert model.state_bytes() == 0
    assert result.state_bytes > 0 and result.batch == 2


def test_state_bytes_grow_by_the_keys_and_values_of_a_token(model):
    """The caches hold room for more tokens; a step reads only those that are there."""
    slot = model.new_slot()
    read = []
    for ids in ([1, 2, 3], [4], [5, 6]):
        model.forward([(slot, ids)])
        read.append(state_bytes(model, [slot]))
    a_token = read[1] - read[0]
    assert a_token > 0 and read[2] - read[1] == 2 * a_token
    assert read[2] < model.state_bytes()
    model.free_slot(slot)
    assert state_bytes(model, []) == 0


def test_peak_memory_does_not_count_the_buffers_of_the_bandwidth(path, monkeypatch):
    """They are larger than a small model, and are not what running it takes."""
    calls = []
    monkeypatch.setattr(bench, "_peak_memory", lambda: calls.append("peak") or 1)
    monkeypatch.setattr(measuring, "memory_bandwidth", lambda n: calls.append("bandwidth") or 1e9)
    plan = {"warmup": 0, "measure": 1, "prompt_tokens": 4, "max_tokens": 1, "batch": 1}
    bench.run_bench(str(path), {"backend": "cpu", "threads": 1}, False, plan)
    assert calls == ["peak", "bandwidth"]


def test_a_device_with_memory_of_its_own_has_no_share_of_the_machines(path, monkeypatch, capsys):
    monkeypatch.setattr(Cpu, "capacity", lambda self: 1 << 40)
    monkeypatch.setattr(Cpu, "matrix_bytes", lambda self, *matrix: 1)
    plan = {"warmup": 0, "measure": 1, "prompt_tokens": 4, "max_tokens": 1, "batch": 1}
    result = bench.run_bench(str(path), {"backend": "cpu", "threads": 1}, False, plan)
    assert result["memory_bandwidth_bytes_s"] is result["bandwidth_share"] is None
    bench._print(result)
    assert capsys.readouterr().out.splitlines()[-1] == "a token reads 1.8 MiB"


def test_an_interrupted_bandwidth_measurement_ends_the_process():
    """Interrupted while threads still wait for each other, which none may do for ever."""
    code = (
        "from threading import Thread\n"
        "from apr_eval.measuring import memory_bandwidth\n"
        "start, started = Thread.start, []\n"
        "def interrupted(self):\n"
        "    if started: raise KeyboardInterrupt\n"
        "    started.append(self)\n"
        "    start(self)\n"
        "Thread.start = interrupted\n"
        "try: memory_bandwidth(2, rounds=1)\n"
        "except KeyboardInterrupt: print('left')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


def test_profile_counts_an_op_inside_another_once(model):
    slot = model.new_slot()
    before = dict(vars(model.ops))
    with profiled(model) as profile:
        model.forward([(slot, [1, 2, 3])])
    assert vars(model.ops) == before
    rows = profile.rows()
    assert rows[-1]["op"] == "(between)" and rows[-1]["seconds"] >= 0
    assert sum(row["seconds"] for row in rows) == pytest.approx(profile.total_s)
    names = {row["op"].split("[")[0] for row in rows}
    assert {"linears", "mlp", "embed", "rms_norm", "gated_delta", "attention"} <= names
    model.free_slot(slot)


def test_each_op_of_a_device_is_waited_for(model, monkeypatch):
    download, waits = model.backend.download, []
    monkeypatch.setattr(model.backend, "download", lambda x: waits.append(x.size) or download(x))
    slot = model.new_slot()
    monkeypatch.setattr(model.backend, "capacity", lambda: 1 << 40)
    with profiled(model) as profile:
        model.forward([(slot, [1, 2, 3])])
    monkeypatch.setattr(model.backend, "capacity", lambda: None)
    calls = sum(op.calls for op in profile.ops.values())
    assert waits.count(1) == calls > 0
    waits.clear()
    with profiled(model):
        model.forward([(slot, [1, 2, 3])])
    assert 1 not in waits
    model.free_slot(slot)


def test_spread_of_known_numbers():
    assert Spread.of(range(11)) == Spread(5.0, 1.0, 9.0)


def test_bandwidth_is_a_plausible_number():
    assert 1e8 < memory_bandwidth(1, rounds=1) < 1e13


def test_what_does_not_fit_is_refused(model, path):
    with pytest.raises(UsageError, match="do not fit"):
        measure(model, Plan(prompt_tokens=model.max_len, max_tokens=1))
    fails(2, "do not fit", "bench", path, "--prompt-tokens", 10**7)
    fails(2, "0 is not in the range", "bench", path, "--measure", 0)
    fails(3, "nowhere.apr", "bench", "nowhere.apr")
