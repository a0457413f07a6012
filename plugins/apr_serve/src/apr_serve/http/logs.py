"""Log lines of the server: one a request, as JSON or for people, without prompts or answers."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Literal

FIELDS = (
    "request_id", "method", "path", "status", "ms", "client", "model", "prompt_tokens",
    "cached_tokens", "completion_tokens", "ended_by", "ignored", "body",
)  # fmt: skip
PLAIN = re.compile(r"[^\s'\"]*")
COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON; a traceback is the text of `error`."""
        content = {
            "time": _time(record.created), "level": record.levelname.lower(),
            "message": record.getMessage(), **_fields(record),
        }  # fmt: skip
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False, default=str)


class ForPeople(logging.Formatter):
    """Time, message, then what else is known as key=value; coloured on a terminal."""

    def __init__(self, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line; control characters in it cannot reach a terminal."""
        pairs = " ".join(f"{k}={_quoted(v)}" for k, v in _fields(record).items())
        line = f"{time.strftime('%H:%M:%S')} {_shown(record.getMessage())} {pairs}".rstrip()
        colour = COLOURS.get(record.levelname) if self._colours else None
        if colour:
            line = f"{colour}{line}\x1b[0m"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "\n" + "\n".join(map(_shown, trace.splitlines()))
        return line


def configure(form: Literal["pretty", "json"]) -> None:
    """Send the server's log to stderr, with warnings and errors of the HTTP library."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else ForPeople(sys.stderr.isatty()))
    for name, level in (
        ("apr.server", logging.INFO),
        ("apr.engine", logging.INFO),
        ("_granian", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value for name, value in fields.items() if value is not None}


def _time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _quoted(value: object) -> str:
    """Return a value as one word: text from a client must not look like another field."""
    text = f"{value}"
    return text if PLAIN.fullmatch(text) and text.isprintable() else repr(text)


def _shown(value: object) -> str:
    text = f"{value}"
    return text if text.isprintable() else repr(text)
