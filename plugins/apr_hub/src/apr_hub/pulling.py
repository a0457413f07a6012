"""Pulls the files a model needs into the hub client's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from apr_core.plugin import AprError, InputOutputError, NotFound
from apr_hub.choosing import INDEX, small_files, weight_files
from apr_hub.downloading import RemoteFile, check_space, download
from apr_hub.ids import HubId, parse_id

Progress = Callable[[str, int, int], None]  # (what is pulled, bytes that are there, all bytes)
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may read it."


@dataclass(frozen=True, slots=True)
class PulledModel:
    """The folder of a pulled model, its commit, and the files' sizes."""

    path: Path
    commit: str
    files: dict[str, int]


def pull(
    text: str, *, offline: bool = False, force: bool = False, progress: Progress | None = None
) -> PulledModel:
    """Pull hf://ORG/NAME[@REVISION]: only what is needed, resumed, verified.

    `progress` is called before the first byte of what is not here, and as bytes arrive.
    Raises UsageError (no id), NotFound (repository, revision, no safetensors, not there offline)
    or InputOutputError (access denied, network, disk).
    """
    id_ = parse_id(text)
    if offline or _offline():
        folder = resolve_local(text)
        if folder is None:
            raise NotFound(f"{id_} is not on this machine, and offline", "Pull it online first.")
        return PulledModel(folder, folder.name, _sizes(folder))
    with _explained(id_):
        return _Pull(id_, force, progress).run()


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


class _Pull:
    """One pull: list, choose, fetch, link."""

    def __init__(self, id_: HubId, force: bool, progress: Progress | None) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.file_download import repo_folder_name

        client: Any = import_module("huggingface_hub.utils")
        self.folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=id_.repo, repo_type="model")
        self.id, self.force, self.progress = id_, force, progress
        self.done = self.total = 0
        info = HfApi().model_info(id_.repo, revision=id_.revision, files_metadata=True)
        self.commit: str = info.sha or id_.revision
        self.siblings = {s.rfilename: s for s in info.siblings or []}
        self.headers: dict[str, str] = client.build_hf_headers()

    def run(self) -> PulledModel:
        small = small_files(self.siblings)
        if "config.json" not in small:
            raise NotFound(f"{self.id}: the repository has no config.json")
        paths = {n: self._fetch(n) for n in small if n == INDEX}  # it says what the weights are
        weights = weight_files(self.siblings, paths.get(INDEX))
        sizes = {n: self._size(n) for n in [*small, *weights]}
        there = paths if self.force else [n for n in sizes if self._snapshot(n).exists()]
        self.total, self.done = sum(sizes.values()), sum(sizes[n] for n in there)
        if self.done < self.total:
            self._advance(str(self.id), 0)
        paths |= {n: self._fetch(n) for n in small if n not in paths}
        folder = paths["config.json"].parent
        check_space(folder, self.total - self.done)
        paths |= {n: self._fetch(n) for n in weights}
        self._remember_revision(folder)
        return PulledModel(folder, self.commit, {n: p.stat().st_size for n, p in paths.items()})

    def _remember_revision(self, folder: Path) -> None:
        """Write the client's record of a branch's or tag's commit, used by offline look-ups."""
        if self.id.revision != self.commit:
            ref = folder.parent.parent / "refs" / self.id.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(self.commit)

    def _size(self, name: str) -> int:
        return int(self.siblings[name].size or 0)

    def _advance(self, name: str, amount: int) -> None:
        self.done += amount
        if self.progress and self.total:
            self.progress(name, self.done, self.total)

    def _snapshot(self, name: str) -> Path:
        """Return where the hub's client keeps a file of this commit."""
        return self.folder / "snapshots" / self.commit / name

    def _fetch(self, name: str) -> Path:
        """Return a file of the snapshot folder, downloaded if it is missing."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        if self._snapshot(name).exists() and not self.force:
            return self._snapshot(name)
        url = hf_hub_url(self.id.repo, name, revision=self.commit)
        etag = get_hf_file_metadata(url, headers=self.headers).etag
        if not etag or "/" in etag:
            raise InputOutputError(f"{name}: the hub gives no usable ETag")
        blob = self.folder / "blobs" / etag
        blob.parent.mkdir(parents=True, exist_ok=True)
        if self.force:
            blob.unlink(missing_ok=True)
        if not blob.exists():
            download(self._remote(name, url), blob, self.headers, self._advance)
        else:
            self._advance(name, self._size(name))
        return Path(hf_hub_download(self.id.repo, name, revision=self.commit))

    def _remote(self, name: str, url: str) -> RemoteFile:
        sibling = self.siblings[name]
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        return RemoteFile(name, url, self._size(name), sha256, sibling.blob_id)


def resolve_local(text: str) -> Path | None:
    """Return the folder of a complete, already pulled model, or None. Uses no network."""
    from huggingface_hub import try_to_load_from_cache

    id_ = parse_id(text)

    def cached(name: str) -> Path | None:
        path = try_to_load_from_cache(id_.repo, name, revision=id_.revision)
        return Path(path) if isinstance(path, str) else None

    config, index = cached("config.json"), cached(INDEX)
    if config is None:
        return None
    folder = config.parent
    try:
        weights = weight_files([p.name for p in folder.iterdir()], index)
    except AprError:
        return None
    return folder if all((folder / name).exists() for name in weights) else None


def _sizes(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}


@contextmanager
def _explained(id_: HubId) -> Iterator[None]:
    """Raise the hub client's exceptions as apr's errors."""
    errors: Any = import_module("huggingface_hub.errors")
    try:
        yield
    except AprError:
        raise
    except errors.GatedRepoError as error:
        raise InputOutputError(
            f"{id_}: access is restricted to people who accepted the model's terms",
            f"Accept them on the model's page. {LOGIN}",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotFound(
            f"{id_}: the repository has no revision {id_.revision!r}",
            "Give a branch, tag or commit.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _missing(id_, error) from error
    except errors.HfHubHTTPError as error:
        raise _refused(id_, error) from error
    except errors.HTTPError as error:
        raise InputOutputError(
            f"{id_}: the hub cannot be reached ({type(error).__name__}: {error})",
            "Check the network and HF_ENDPOINT. What is there is kept: the same command continues.",
        ) from error
    except OSError as error:
        raise InputOutputError(f"{id_}: {error.strerror or error}") from error


def _status(error: Any) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _missing(id_: HubId, error: Exception) -> AprError:
    if _status(error) == 401:
        return InputOutputError(
            f"{id_}: the hub answers 401: it does not exist, or is not for everybody",
            f"Check the spelling. {LOGIN}",
        )
    return NotFound(f"{id_}: no such model on the hub", f"Check the spelling. If private: {LOGIN}")


def _refused(id_: HubId, error: Exception) -> AprError:
    status = _status(error)
    if status in (401, 403):
        return InputOutputError(f"{id_}: the hub refuses access ({status})", LOGIN)
    if status == 404:
        return NotFound(f"{id_}: a file of the model is missing on the hub ({error})")
    return InputOutputError(f"{id_}: the hub answers {status}", "Try again later.")
