"""The commands as a user types them: output, exit codes, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from apr_core import load
from apr_core.errors import UsageError
from tests import tiny_checkpoints

pytestmark = pytest.mark.needs_plugins

QUESTION = "What is 2+2? Answer with just the number."


def apr(*args, stdin="", **env):
    return subprocess.run(
        [sys.executable, "-m", "apr_core.cli", *map(str, args)],
        input=stdin, capture_output=True, text=True, env=os.environ | env,
    )  # fmt: skip


def fails(code, words, *args, **env):
    done = apr(*args, **env)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stderr.startswith(("error:", "Usage:")), done.stderr
    assert "Traceback" not in done.stderr and "bug in apr" not in done.stderr
    assert words in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    out = tmp_path_factory.mktemp("sums") / "sums.apr"
    done = apr("import", "demo://sums", "--quantize", "q4k", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "bits per weight" in done.stdout
    return out


@pytest.fixture
def checkpoint(tmp_path):
    return tiny_checkpoints.write(tmp_path / "checkpoint")


def edit(path, **changes):
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    path.write_text(json.dumps(content))


def test_run_answers(sums):
    done = apr("run", sums, QUESTION)
    assert done.returncode == 0 and done.stdout == "4\n"
    assert "tok/s" in done.stderr


def test_what_is_no_apr_file_is_imported_once(tmp_path):
    first = apr("run", "demo://sums", QUESTION, APR_STORE=str(tmp_path))
    assert first.returncode == 0 and first.stdout == "4\n", first.stderr
    assert first.stderr.startswith("importing demo://sums") and "recipe q4k: " in first.stderr
    again = apr("chat", "sums", stdin=f"{QUESTION}\n", APR_STORE=str(tmp_path))
    assert again.returncode == 0 and again.stdout == "4\n" and "import" not in again.stderr


def test_run_json_and_verbose(sums):
    done = apr("run", sums, "-", "--json", "-v", "--strict", stdin=QUESTION)
    result = json.loads(done.stdout)
    assert result["text"] == "4" and result["finish_reason"] == "stop"
    assert result["completion_tokens"] == 2 and result["backend"] == "cpu"
    assert result["fallbacks"] == []
    assert "linear[q4_k]" in done.stderr


def test_run_options(sums):
    sampled = [
        apr("run", sums, "Hello", "--temperature", "1.5", "--seed", "5", "--max-tokens", "6").stdout
        for _ in range(2)
    ]
    assert sampled[0] == sampled[1]
    assert apr("run", sums, "Hello", "--stop", "add").stdout == "Hello! I can \n"
    thinking = apr("run", sums, "Hello", "--thinking", "on", "--max-tokens", "3", "--json")
    assert json.loads(thinking.stdout)["prompt_tokens"] > 0
    raw = apr("run", sums, "<|im_start|>x", "--raw", "--max-tokens", "1", "--json")
    assert json.loads(raw.stdout)["prompt_tokens"] > 3  # the token was read as text
    raw = apr("run", sums, "<|im_start|>x", "--raw", "--special", "--max-tokens", "1", "--json")
    assert json.loads(raw.stdout)["prompt_tokens"] == 2


def test_chat_keeps_history_and_obeys_commands(sums):
    script = "Hello\n/help\n/nonsense\n\n17+25=\n/clear\n/system Be brief.\n2+2=\n/quit\nnot read\n"
    done = apr("chat", sums, stdin=script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Hello! I can add two numbers for you."
    assert "42" in lines and lines[-1] == "4"
    assert "no such command: /nonsense" in done.stderr


def test_demo_ends_with_four():
    done = apr("demo")
    assert done.returncode == 0, done.stderr
    assert "\n4\n" in done.stdout


def test_bad_prompts(sums):
    fails(2, "empty", "run", sums, "  ")
    fails(2, "context holds 64", "run", sums, "1+1= " * 200, "--context", "64")
    fails(2, "temperature", "run", sums, "x", "--temperature", "-1")
    fails(2, "max-tokens", "run", sums, "x", "--max-tokens", "0")


def test_bad_files_and_names(sums, tmp_path):
    fails(3, "no such file", "run", tmp_path / "nothing.apr", "x")
    fails(3, "provides backend 'gpu'", "run", sums, "x", "--backend", "gpu")
    fails(
        14,
        "no CUDA device",
        "run",
        sums,
        "x",
        "--backend",
        "cuda",
        CUDA_VISIBLE_DEVICES="",
        TRITON_INTERPRET="0",
    )
    for command in (["run", sums, "x"], ["chat", sums], ["bench", sums], ["serve", sums]):
        fails(14, "there is no cpu:1", *command, "--backend", "cpu:1")
    fails(
        3,
        "apr-quant-q4k:quant_q4k is disabled",
        "run",
        sums,
        "x",
        APR_PLUGINS_BLOCK="apr-quant-q4k",
    )
    fails(3, "apr-qwen3-5:qwen3_5 is disabled", "run", sums, "x", APR_PLUGINS_BLOCK="apr-qwen3-5")
    fails(
        3,
        "pip install apr-demo",
        "import",
        "demo://sums",
        "-o",
        sums.with_name("x"),
        APR_NO_PLUGINS="1",
    )
    cut = tmp_path / "cut.apr"
    cut.write_bytes(sums.read_bytes()[:-1000])
    fails(4, "cut.apr", "run", cut, "x")
    assert apr("validate", cut).returncode == 5
    flipped = tmp_path / "flipped.apr"
    raw = bytearray(sums.read_bytes())
    raw[len(raw) // 2] ^= 16
    flipped.write_bytes(raw)
    bad = apr("validate", flipped)
    assert bad.returncode == 5 and "footer-checksum" in bad.stdout
    assert apr("validate", sums).returncode == 0
    fails(2, "Did you mean plugins", "plugin")
    assert apr("help", "run").stdout == apr("run", "--help").stdout != ""
    assert apr("help").stdout == apr("--help").stdout
    assert apr("-V").stdout == apr("--version").stdout


def test_a_python_prompt_shows_what_an_object_is(sums):
    with load(sums) as model:
        family, file = model.metadata["architecture"], repr(str(sums))
        assert repr(model) == f"<Model {file}: {family} on cpu, 2048 tokens>"
        assert repr(model.tokenizer) == f"<Tokenizer: {model.tokenizer.vocab_size} tokens>"
        assert repr(model.file).startswith(f"<AprFile {file}: {len(model.file.tensors)} tensors, ")


def test_a_question_and_a_list_of_messages_get_the_same_answer(sums):
    with load(sums) as model:
        messages = [{"role": "user", "content": "17+25="}]
        answer = model.chat("17+25=", max_tokens=8)
        assert answer.text == model.chat(messages, max_tokens=8).text == "42"
        assert answer.ids == model.generate(model.chat_ids(messages), max_tokens=8).ids
        model.metadata.pop("chat_template")
        with pytest.raises(UsageError, match="no chat template"):
            model.chat("17+25=")


def test_inspect_and_tensors_work_without_plugins(sums):
    for command in (["inspect", sums], ["tensors", sums], ["tensors", sums, "--stats"]):
        done = apr("--no-plugins", *command)
        assert done.returncode == 0, done.stderr


def test_outputs_are_protected(checkpoint, tmp_path):
    out = tmp_path / "out.apr"
    out.write_text("precious")
    fails(2, "--force", "import", checkpoint, "-o", out)
    assert out.read_text() == "precious"
    fails(3, "does not exist", "import", checkpoint, "-o", tmp_path / "no" / "out.apr")
    assert apr("import", checkpoint, "-o", out, "--force").returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "out.apr"]


def test_bad_checkpoints(checkpoint, tmp_path):
    out = tmp_path / "out.apr"
    command = ("import", checkpoint, "-o", out)
    config = checkpoint / "config.json"
    good = config.read_text()
    edit(config, architectures=["Strange"], model_type="strange")
    fails(3, "Strange", *command)
    config.unlink()
    fails(3, "config.json", *command)
    config.write_text(good)
    text = json.loads(good)["text_config"]
    edit(config, text_config=text | {"intermediate_size": 1024})
    assert "expected [1024, 256]" in fails(4, "wrong shape", *command).stderr
    edit(config, text_config=text | {"num_hidden_layers": 8, "layer_types": None})
    fails(4, "missing", *command)
    config.write_text(good)
    tokenizer = checkpoint / "tokenizer.json"
    saved = tokenizer.read_text()
    content = json.loads(saved)
    content["added_tokens"].append({"id": 9999, "content": "<|far|>", "special": True})
    tokenizer.write_text(json.dumps(content))
    fails(4, "9999", *command)
    tokenizer.unlink()
    fails(3, "tokenizer.json", *command)
    tokenizer.write_text(saved)
    fails(
        3,
        "apr-quant-q4k:quant_q4k is disabled",
        *command,
        "--quantize",
        "q4k",
        APR_PLUGINS_BLOCK="apr-quant-q4k",
    )
    fails(3, "no_such_recipe", *command, "--quantize", "no_such_recipe")
    assert not out.exists()


def test_interrupted_import_leaves_no_file(tmp_path):
    big = tiny_checkpoints.write(tmp_path / "big", hidden=1024, intermediate=4096, layers=8)
    out = tmp_path / "out" / "model.apr"
    out.parent.mkdir()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-m", "apr_core.cli", "import", big, "--quantize", "q6k", "-o", out],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not list(out.parent.iterdir()) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        code = process.wait()
        assert code != 0, "the import was over before the signal"
        assert not out.exists()
        if number != signal.SIGKILL:  # which nothing can clean up after
            assert not list(out.parent.iterdir())
