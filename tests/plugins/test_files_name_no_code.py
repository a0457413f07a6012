"""A file or a checkpoint cannot cause code to be imported that is not installed and enabled."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from apr_core.format import FormatSpec
from tests import apr_files, tiny_checkpoints
from tests.torture import install, quantizer


@pytest.fixture
def place(tmp_path):
    """A folder on the path with a plugin that is disabled, and modules that say when they run."""
    install(tmp_path, "x-off", quantizer("offq"))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass F: pass\n")
    (tmp_path / "c.toml").write_text('[plugins]\ndisable = ["x-off"]\n')
    return tmp_path


def apr(place, *args):
    own = {"PYTHONPATH": str(place), "APR_CONFIG": str(place / "c.toml"),
           "APR_CACHE": str(place / "cache")}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "apr_core.cli", *map(str, args)],
        env=os.environ | own, capture_output=True, text=True,
    )  # fmt: skip


def ran(place):
    log = place / "imports.log"
    return (place / "ran").exists() or (log.exists() and "x-off" in log.read_text())


@pytest.mark.parametrize("family", ["evil:F", "evil", "x-off:offq", "../evil", "os:system", ""])
def test_a_family_named_by_a_file_is_looked_up_and_never_imported(place, family):
    metadata = {"apr.family": family, "architecture": family, "hf_config": {"model_type": family}}
    file = apr_files.write(place / "m.apr", metadata, {"w": np.zeros((2, 2), np.float32)})
    for command in (["inspect", file], ["run", file, "hi"], ["validate", file]):
        done = apr(place, *command)
        assert "Traceback" not in done.stderr
    assert done.returncode != 0
    assert not ran(place)


@pytest.mark.needs_plugins
def test_a_format_of_a_disabled_plugin_is_not_imported(place):
    spec = FormatSpec("offq", 200, 32, 18, "x-off")
    file = apr_files.write(place / "m.apr", {}, {"w": (spec, (2, 32), b"\0" * 36)})
    listed = apr(place, "tensors", file)
    assert listed.returncode == 0 and "offq" in listed.stdout
    counted = apr(place, "tensors", file, "--stats")
    assert "x-off:x-off is disabled" in counted.stdout + counted.stderr
    assert "apr plugins enable x-off" in counted.stdout + counted.stderr
    assert not ran(place)


@pytest.mark.parametrize(
    "field",
    [{"distribution": "x; rm -rf ~"}, {"distribution": "--index-url"}, {"name": "a\x1b[2J"}],
)
def test_names_in_a_file_cannot_be_commands_or_escapes(place, field):
    row = {"id": 200, "name": "q", "distribution": "x", "block": 32, "bytes_per_block": 18}
    file = place / "m.apr"
    file.write_bytes(apr_files.build({"apr.formats": [row | field]}))
    done = apr(place, "tensors", file)
    assert done.returncode == 4 and "a name that no format or distribution has" in done.stderr


@pytest.mark.needs_plugins
def test_a_checkpoint_with_code_beside_it_is_not_run(place):
    source = tiny_checkpoints.write(place / "checkpoint", family="qwen3_5")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.F", "AutoConfig": "evil.F"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "evil.py").write_text((place / "evil.py").read_text())
    done = apr(place, "import", source, "--quantize", "f16", "-o", place / "m.apr")
    assert done.returncode == 0, done.stderr
    assert apr(place, "run", place / "m.apr", "hi", "--raw", "--max-tokens", "1").returncode == 0
    assert not ran(place)
