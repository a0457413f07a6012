"""A model hub on 127.0.0.1 that speaks what huggingface_hub asks for, with faults on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "1234567890abcdef1234567890abcdef12345678"
LARGE = 1 << 16  # from here on a file is stored as LFS, with a sha256


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Faults:
    """What goes wrong, and how often (`cuts` counts down)."""

    cut_after: int = 0  # bytes of a body before the connection is closed
    cuts: int = 0
    status: int = 0  # answer everything with this status
    gated: bool = False
    corrupt: set[str] = field(default_factory=set)  # names whose bytes are altered
    no_ranges: bool = False


class Hub:
    """The server. `files` are those of ORG/MODEL at `main`."""

    def __init__(self, files: dict[str, bytes], repo: str = "org/model") -> None:
        self.files, self.repo, self.faults = files, repo, Faults()
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # bytes of bodies, by file
        self.tokens: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, h: BaseHTTPRequestHandler, body: bool) -> None:
        path = unquote(h.path.partition("?")[0])
        self.requests[f"{h.command} {path}"] += 1
        self.tokens.add(h.headers.get("Authorization", ""))
        if self.faults.status or self.faults.gated:
            self._refuse(h)
        elif path.startswith("/api/models/"):
            self._api(h, path.removeprefix("/api/models/"))
        elif f"/{self.repo}/resolve/" in path:
            revision, _, name = path.partition("/resolve/")[2].partition("/")
            self._file(h, revision, name, body)
        else:
            self._error(h, 404, "RepoNotFound")

    def _refuse(self, h: BaseHTTPRequestHandler) -> None:
        if self.faults.gated:
            self._error(h, 403, "GatedRepo")
        else:
            code = "RepoNotFound" if self.faults.status in (401, 404) else ""
            self._error(h, self.faults.status, code)

    def _error(self, h: BaseHTTPRequestHandler, status: int, code: str) -> None:
        payload = json.dumps({"error": code or "failed"}).encode()
        h.send_response(status)
        if code:
            h.send_header("X-Error-Code", code)
            h.send_header("X-Error-Message", code)
        h.send_header("Content-Length", str(len(payload)))
        h.end_headers()
        if h.command != "HEAD":
            h.wfile.write(payload)

    def _api(self, h: BaseHTTPRequestHandler, rest: str) -> None:
        repo, _, revision = rest.partition("/revision/")
        if repo != self.repo:
            self._error(h, 404, "RepoNotFound")
            return
        if (revision or "main") not in ("main", COMMIT):
            self._error(h, 404, "RevisionNotFound")
            return
        siblings = []
        for name, content in self.files.items():
            row = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if len(content) >= LARGE:
                digest = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 134}
            siblings.append(row)
        info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [],
                "private": False, "downloads": 0, "likes": 0}  # fmt: skip
        payload = json.dumps(info).encode()
        h.send_response(200)
        h.send_header("Content-Type", "application/json")
        h.send_header("Content-Length", str(len(payload)))
        h.end_headers()
        h.wfile.write(payload)

    def _file(self, h: BaseHTTPRequestHandler, revision: str, name: str, body: bool) -> None:
        if revision not in ("main", COMMIT):
            self._error(h, 404, "RevisionNotFound")
            return
        if name not in self.files:
            self._error(h, 404, "EntryNotFound")
            return
        content = self.files[name]
        etag = hashlib.sha256(content).hexdigest() if len(content) >= LARGE else git_sha1(content)
        if name in self.faults.corrupt:
            content = bytes(len(content))
        start, wanted = 0, h.headers.get("Range", "")
        if wanted.startswith("bytes=") and not self.faults.no_ranges:
            start = int(wanted[6:].partition("-")[0])
        h.send_response(206 if start else 200)
        h.send_header("ETag", f'"{etag}"')
        h.send_header("X-Repo-Commit", COMMIT)
        h.send_header("X-Linked-Etag", f'"{etag}"')
        h.send_header("X-Linked-Size", str(len(content)))
        h.send_header("Content-Length", str(len(content) - start))
        if start:
            h.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        h.end_headers()
        if body:
            self._send(h, name, content[start:])

    def _send(self, h: BaseHTTPRequestHandler, name: str, content: bytes) -> None:
        cut = self.faults.cuts > 0 and len(content) > self.faults.cut_after
        if cut:
            self.faults.cuts -= 1
            content = content[: self.faults.cut_after]
        h.wfile.write(content)
        h.wfile.flush()
        self.sent[name] += len(content)
        if cut:
            h.close_connection = True
            h.connection.close()
