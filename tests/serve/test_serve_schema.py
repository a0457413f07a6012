"""Requests made from the published schema, fitting and not: no answer is a fault of the server.

$APR_SCHEMA_CASES sets how many an operation (default 25); thousands in all by 1000.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from apr_serve.http.app import create_app
from apr_serve.http.options import ServerOptions
from tests.serve.serving import shared

pytestmark = pytest.mark.needs_plugins

CHECKS = [
    status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
SAID = [{"role": "user", "content": "Hello"}]
# what is rarely met by chance, put into every other case so that the rest of it is reached
GOOD = {
    "/v1/chat/completions": {"model": "sums", "messages": SAID},
    "/v1/completions": {"model": "sums", "prompt": "2+2="},
    "/v1/embeddings": {"model": "sums", "input": "2+2="},
    "/v1/responses": {"model": "sums", "input": "Hello"},
    "/v1/messages": {"model": "sums", "messages": SAID},
    "/v1/messages/count_tokens": {"model": "sums", "messages": SAID},
    "/tokenize": {"model": "sums", "text": "2+2=", "messages": None},
    "/detokenize": {"model": "sums"},
}
CASES = int(os.environ.get("APR_SCHEMA_CASES", "25"))
OPERATIONS = [
    f"{method.upper()} {path}"
    for path, methods in create_app({}, ServerOptions()).openapi()["paths"].items()
    for method in methods
]


@pytest.fixture(scope="module")
def published():
    return schemathesis.openapi.from_url(shared().url + "/openapi.json")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_request_is_the_servers_fault(published, operation):
    method, path = operation.split()
    statuses = Counter()
    strategies = [published[path][method].as_strategy(generation_mode=mode) for mode in MODES]

    @settings(
        max_examples=CASES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(st.one_of(strategies), st.booleans())
    def check(case, reachable):
        if reachable and isinstance(case.body, dict):
            case.body |= GOOD.get(path, {})
        short(case.body)
        answer = case.call(timeout=60)
        statuses[answer.status_code] += 1
        details = (case.as_curl_command(), answer.status_code, answer.text)
        assert answer.status_code < 500, details
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400:
            assert "error" in answer.json(), details

    check()
    expected = 404 if "{" in path else 200  # names in paths are made up
    assert statuses[expected], f"the schema leads to nothing but {dict(statuses)}"


def short(body):
    """Answers that are made need not be long."""
    if isinstance(body, dict):
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if type(body.get(name)) is int and body[name] > 8:
                body[name] = 8


def test_the_schema_names_what_there_is():
    paths = shared().get("/openapi.json").json()["paths"]
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/health/live",
        "/health/ready",
        "/metrics",
    } <= set(paths)
    chat = paths["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "404", "413", "415", "429", "503"} <= set(chat["responses"])
    assert "422" not in chat["responses"]
