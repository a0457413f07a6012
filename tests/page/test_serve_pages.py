"""The pages over HTTP: what may run in them, what is asked again, and what the charts are fed."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from apr_serve.engine.interface import EngineStats

pytest.importorskip("fastapi", reason="serving is an extra: apr-core[serve]")
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Histogram

from apr_serve.page import routes as pages

pytestmark = pytest.mark.needs_plugins

FILES = pages.assets()
OURS = [name for name in FILES if name not in pages.SWAGGER]


@pytest.fixture
def client():
    registry = CollectorRegistry()
    first = Histogram(
        "apr_time_to_first_token_seconds", "", ["model"], buckets=(0.1, 1), registry=registry
    )
    for model, seconds in (("one", 0.05), ("two", 0.5), ("two", 7)):
        first.labels(model).observe(seconds)
    engine = SimpleNamespace(stats=lambda: EngineStats(slots=4, running=3))
    app = FastAPI(docs_url=None)
    app.include_router(pages.router({"demo": SimpleNamespace(engine=engine)}, registry))
    return TestClient(app)


@pytest.mark.parametrize("path", [*pages.PAGES, *(f"/page/{name}" for name in FILES)])
def test_every_file_is_sent_with_a_strict_policy_and_kept_by_the_browser(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    lenient = " 'unsafe-inline'" if "docs" in path and path.endswith(("docs", ".html")) else ""
    assert policy["style-src"] == "'self'" + lenient
    assert ("require-trusted-types-for" in policy) == (not lenient)
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = client.get(path, headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
    assert again.status_code == 304 and not again.content
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.head(path).status_code == 200


@pytest.mark.parametrize("name", OURS)
def test_nothing_comes_from_elsewhere_and_nothing_is_inline(name):
    text = FILES[name].body.decode()
    outside = re.findall(r"https?://[^\s'\"`)|]+", text)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML =|insertAdjacentHTML|document\.write|\beval\(", text)
    if name.endswith(".html"):
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


@pytest.mark.parametrize("name", [name for name in OURS if name.endswith((".html", ".js"))])
def test_every_file_that_is_asked_for_is_there(name):
    text = FILES[name].body.decode()
    asked = re.findall(r'(?:href|src)="page/([^"]+)"|from "\./([^"]+)"', text)
    assert {one or other for one, other in asked} <= set(FILES)


def test_other_files_are_not_served(client):
    for path in ("/page/nothing.js", "/page/..%2Fpages.py", "/page/%2e%2e/pages.py", "/page/"):
        assert client.get(path).status_code == 404


def test_the_figures_are_of_every_engine_and_of_all_models_together(client):
    answer = client.get("/status.json")
    assert answer.headers["cache-control"] == "no-store"
    [model] = answer.json()["models"]
    assert model["id"] == "demo" and model["stats"]["running"] == 3
    assert answer.json()["latency"] == {"first_token": [[0.1, 1], [1, 2], [None, 3]]}


def test_only_the_pages_and_their_files_need_no_key():
    assert all(pages.is_public(path) for path in ("/", "/status", "/docs", "/page/docs.js"))
    assert not any(pages.is_public(path) for path in ("/status.json", "/v1/models", "/pages"))
