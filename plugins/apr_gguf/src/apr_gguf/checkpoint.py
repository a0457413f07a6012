"""A GGUF file as a checkpoint: configuration and tokenizer from its keys, tensors in HF's form."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from apr_core.plugin import Checkpoint, FormatError, NotFound, SourceTensor
from apr_core.runtime import get_registry
from apr_gguf.architectures import ARCHITECTURES, Architecture, Keys, common_config
from apr_gguf.reader import GgufFile, read_header
from apr_gguf.tokenizer import tokenizer_files

FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
PACKED = {
    t: t.lower() for t in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
}
PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def open_checkpoint(path: str) -> GgufCheckpoint:
    """Open a GGUF file, or all files of a split one by any of its parts.

    Raises NotFound if a part is missing, InputOutputError, or FormatError for damaged files and for
    what no plugin here reads.
    """
    files = [read_header(part) for part in _parts(Path(path))]
    keys = Keys(path, files[0].keys)
    arch = ARCHITECTURES.get(keys.architecture)
    if arch is None:
        raise FormatError(
            f"{path}: is of architecture {keys.architecture!r}, known are "
            f"{', '.join(sorted(ARCHITECTURES))}",
            "Import the original checkpoint, if a family for it is installed: apr plugins list.",
        )
    return GgufCheckpoint(arch, keys, files)


def _parts(path: Path) -> list[Path]:
    match = PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    parts = [
        path.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        raise NotFound(
            f"{path}: {len(missing)} of {count} parts are missing: {', '.join(missing[:5])}",
            "Complete the download: all parts belong into one folder.",
        )
    return parts


class GgufCheckpoint(Checkpoint):
    """Reads tensors under the names, in the order and with the values of the HF checkpoint."""

    file_format = "gguf"

    def __init__(self, arch: Architecture, keys: Keys, files: list[GgufFile]) -> None:
        self.arch, self.keys = arch, keys
        self._types: dict[str, GGMLQuantizationType] = {}
        tensors: dict[str, SourceTensor] = {}
        for file in files:
            for t in file.tensors.values():
                name = arch.tensor(t.name) or t.name
                if name in tensors:
                    raise FormatError(f"{file.path}: tensor {t.name!r} is in two files")
                tensors[name] = SourceTensor(
                    name, t.type.name, t.shape, file.path, t.offset, t.nbytes
                )
                self._types[name] = t.type
        self._folder = tempfile.TemporaryDirectory(prefix="apr-gguf-")
        super().__init__(Path(self._folder.name), tensors, {})
        tied = "lm_head.weight" not in tensors
        files_of = tokenizer_files(keys)
        rows = len(files_of["tokenizer.json"]["model"]["vocab"])
        embedding = tensors.get("model.embed_tokens.weight")
        config = common_config(keys, arch, tied, embedding.shape[0] if embedding else rows)
        eos = keys.get("tokenizer.ggml.eos_token_id", int, None)
        config["eos_token_id"] = eos
        config["bos_token_id"] = keys.get("tokenizer.ggml.bos_token_id", int, None)
        for name, content in {"config.json": config, **files_of}.items():
            (self.directory / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")

    def format_of(self, name: str) -> str:
        """Return the name of the number format of a tensor. Raises FormatError."""
        kind = self._types[name].name
        format = FLOATS.get(kind) or PACKED.get(kind)
        if format is None:
            raise FormatError(
                f"{self.tensors[name].file}: tensor {name!r} is {kind}, known are "
                f"{', '.join([*FLOATS, *PACKED])}",
                "Take a file in one of these formats.",
            )
        return format

    def read_raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the bytes of rows [start, stop), in HF's order of rows."""
        order = self._order(name)
        if order is None:
            return super().read_raw(name, start, stop)
        wanted = order[start:stop]
        first = int(wanted.min())
        raw = super().read_raw(name, first, int(wanted.max()) + 1)
        rows = raw.reshape(int(wanted.max()) + 1 - first, -1)
        return np.ascontiguousarray(rows[wanted - first]).reshape(-1)

    def decode(self, name: str, raw: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        """Return `count` rows of a tensor, as `read_raw` gave them, as float32 [count, values]."""
        format = self.format_of(name)
        if format in FLOATS.values():
            return super().decode(name, raw, count)
        codec = get_registry().make("quantizer", format)
        _, cols = self.rows(name)
        values: NDArray[np.float32] = codec.decode(raw.reshape(count, -1), cols)
        return values

    def _order(self, name: str) -> NDArray[np.int64] | None:
        """Return GGUF's row of each row of the HF checkpoint; None if they are the same."""
        heads = {"q_proj": "attention.head_count", "k_proj": "attention.head_count_kv"}
        part = name.split(".")[-2]
        if not self.arch.rotated_pairs or part not in heads:
            return None
        count = self.keys.own(heads[part], int, self.keys.own("attention.head_count"))
        rows, _ = self.rows(name)
        at = np.arange(rows).reshape(count, rows // count // 2, 2)
        return at.swapaxes(1, 2).reshape(-1)
