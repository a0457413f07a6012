"""Downloads one file: resumed where it stopped, checked against the hub's hash.

The hub client's own download starts over if the process ended halfway, which is too slow for
shards of 5 GB. The finished file lies where the client keeps it, so that other tools share it.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from apr_core.plugin import InputOutputError

CHUNK = 1 << 20
ATTEMPTS = 5  # attempts in a row without a new byte
TIMEOUT_S = 20
Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a commit. `sha256` is set for large files, `blob_id` (git's SHA-1) for others."""

    name: str
    url: str
    size: int
    sha256: str | None
    blob_id: str | None


def check_space(folder: Path, needed: int) -> None:
    """Raise InputOutputError if the disk cannot hold what is still missing."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputOutputError(
            f"{folder}: {needed >> 20} MiB are needed, {free >> 20} MiB are free",
            "Free some space, or set HF_HOME to another disk.",
        )


def download(file: RemoteFile, target: Path, headers: dict[str, str], progress: Progress) -> None:
    """Fetch a file to `target`; a part left by an earlier try is continued.

    A file whose hash is wrong is fetched once more from the start. Raises InputOutputError.
    """
    part = target.with_name(target.name + ".apr-incomplete")
    for last in (False, True):
        _fetch(file, part, headers, progress)
        if _matches(file, part):
            part.replace(target)
            return
        part.unlink()
        progress(file.name, -file.size)
        if last:
            raise InputOutputError(
                f"{file.name}: the bytes do not have the hub's checksum, twice",
                "A proxy between here and the hub may alter files. Try again later.",
            )


def _fetch(file: RemoteFile, part: Path, headers: dict[str, str], progress: Progress) -> None:
    errors: Any = import_module("huggingface_hub.errors")
    failures = 0
    with part.open("ab") as out:
        if out.tell() > file.size:
            out.truncate(0)
        progress(file.name, out.tell())
        while out.tell() < file.size:
            before = out.tell()
            try:
                _append(file, out, headers, progress)
                error: Exception | None = None
            except errors.HfHubHTTPError:
                raise
            except errors.HTTPError as cut:
                error = cut
            failures = 0 if out.tell() > before else failures + 1
            if failures >= ATTEMPTS or (error is None and out.tell() == before):
                raise InputOutputError(
                    f"{file.name}: the connection was lost after {out.tell()} of {file.size} "
                    f"bytes ({error or 'the server sent nothing'})",
                    "What is there is kept: the same command continues.",
                )
            if error is not None:
                time.sleep(min(2.0**failures, 8.0) * 0.25)


def _append(file: RemoteFile, out: BinaryIO, headers: dict[str, str], progress: Progress) -> None:
    client: Any = import_module("huggingface_hub.utils")
    start = out.tell()
    wanted = {**headers, "Accept-Encoding": "identity"}
    if start:
        wanted["Range"] = f"bytes={start}-"
    with client.get_session().stream(
        "GET", file.url, headers=wanted, timeout=TIMEOUT_S, follow_redirects=True
    ) as response:
        client.hf_raise_for_status(response)
        if start and response.status_code == 200:  # the server does not do ranges
            out.truncate(0)
            progress(file.name, -start)
        for chunk in response.iter_bytes(CHUNK):
            try:
                out.write(chunk)
                out.flush()
            except OSError as error:
                raise InputOutputError(
                    f"{file.name}: cannot be written: {error.strerror}",
                    "Free some space or set HF_HOME to another disk: the same command continues.",
                ) from error
            progress(file.name, len(chunk))


def _matches(file: RemoteFile, part: Path) -> bool:
    if file.sha256 is None and file.blob_id is None:
        return part.stat().st_size == file.size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1()
    if not file.sha256:  # git hashes a header before the content
        digest.update(b"blob %d\0" % file.size)
    with part.open("rb") as content:
        while block := content.read(CHUNK):
            digest.update(block)
    return digest.hexdigest() == (file.sha256 or file.blob_id)
