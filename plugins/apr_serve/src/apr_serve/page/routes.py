"""The web pages: chat at `/`, live charts at `/status`, the API at `/docs`, and `/status.json`.

All their files are in `page/`, or in the package that brings Swagger UI: no build step, nothing
from other sites. Pages use relative addresses, so they work behind a proxy that serves them under
another path.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Protocol

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from apr_serve.engine.interface import GenerationEngine

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # a string can never become markup
        "trusted-types 'none'",
    ]
)
# Swagger UI sets styles in elements and builds its markup from strings.
DOCS_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # cached, but revalidated: a new version is seen at once
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
}
PAGES = {"/": "index.html", "/status": "status.html", "/docs": "docs.html"}
SWAGGER = ("swagger-ui.css", "swagger-ui-bundle.js")
METRICS = {
    "first_token": "apr_time_to_first_token_seconds",
    "inter_token": "apr_inter_token_latency_seconds",
}


class Served(Protocol):
    """The part of a service that the status page needs."""

    @property
    def engine(self) -> GenerationEngine:
        """The engine that runs the service's model."""


class Collector(Protocol):
    """A prometheus registry, or what looks like one."""

    def collect(self) -> Iterable[Any]:
        """Return families of metrics with their samples."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the pages. `etag` identifies its bytes, `policy` says what it may load."""

    body: bytes
    media_type: str
    etag: str
    policy: str = POLICY

    def response(self, request: Request) -> Response:
        """Return the file, or 304 when the browser already has it."""
        headers = {**HEADERS, "Content-Security-Policy": self.policy, "ETag": self.etag}
        known = request.headers.get("if-none-match", "")
        if known.strip() == "*" or self.etag in {
            tag.strip().removeprefix("W/") for tag in known.split(",")
        }:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def is_public(path: str) -> bool:
    """Return True for paths without API key: the pages, which ask for a key, and their files."""
    return path in PAGES or path.startswith("/page/")


def assets() -> dict[str, Asset]:
    """Return all files of the pages by name."""
    own = resources.files("apr_serve.page").joinpath("static").iterdir()
    swagger = resources.files("fastapi_offline").joinpath("static")
    files = [*own, *(swagger.joinpath(name) for name in SWAGGER)]
    return {
        file.name: _asset(file.name, file.read_bytes())
        for file in files
        if _suffix(file.name) in TYPES
    }


def router(services: Mapping[str, Served], metrics: Collector | None = None) -> APIRouter:
    """Return the routes of the pages, their files under `/page/`, and `/status.json`.

    `metrics` is the prometheus registry that holds the histograms named in METRICS; without it the
    latencies are empty.
    """
    files = assets()
    started = time.monotonic()
    routes = APIRouter(include_in_schema=False)
    for path, name in PAGES.items():
        routes.add_api_route(path, _page(files[name]), methods=["GET", "HEAD"])

    @routes.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404, f"There is no file {name!r} of the pages.")
        return files[name].response(request)

    @routes.get("/status.json")
    async def status() -> JSONResponse:
        return JSONResponse(
            {
                "uptime_s": round(time.monotonic() - started, 3),
                "models": [
                    {"id": name, "stats": asdict(service.engine.stats())}
                    for name, service in services.items()
                ],
                "latency": latency(metrics) if metrics is not None else {},
            },
            headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        )

    return routes


def latency(metrics: Collector) -> dict[str, list[tuple[float | None, float]]]:
    """Return the histograms named in METRICS: (upper bound in seconds, count below it).

    Counts are cumulative and joined over all labels; the last bound, infinity, is None.
    """
    wanted = {metric: name for name, metric in METRICS.items()}
    histograms: dict[str, dict[float, float]] = {}
    for family in metrics.collect():
        if family.name in wanted:
            histograms[wanted[family.name]] = _buckets(family.samples)
    return {
        name: [(bound if math.isfinite(bound) else None, below) for bound, below in sorted(counts)]
        for name, counts in ((name, buckets.items()) for name, buckets in histograms.items())
    }


def _buckets(samples: Iterable[Any]) -> dict[float, float]:
    counts: dict[float, float] = {}
    for sample in samples:
        if sample.name.endswith("_bucket"):
            bound = float(sample.labels["le"])
            counts[bound] = counts.get(bound, 0.0) + sample.value
    return counts


def _page(asset: Asset) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        return asset.response(request)

    return page


def _asset(name: str, body: bytes) -> Asset:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    policy = DOCS_POLICY if name == PAGES["/docs"] else POLICY
    return Asset(body, TYPES[_suffix(name)], etag, policy)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
