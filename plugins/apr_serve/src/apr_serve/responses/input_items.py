"""The input of a stored response, as `/v1/responses/{id}/input_items` lists it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter

from apr_serve.http.errors import ApiError
from apr_serve.openai.parts import Open
from apr_serve.responses.items import Item
from apr_serve.responses.store import Stored

Order = Literal["asc", "desc"]
_ITEM: TypeAdapter[Item] = TypeAdapter(Item)


class InputItems(Open):
    """A page of items."""

    object: str
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


def input_items(stored: Stored, limit: int, order: Order, after: str | None) -> dict[str, Any]:
    """Return a page of at most `limit` items, after item `after`. Raises ApiError if it is missing.

    Only items of the response's own request: `previous_response_id` leads to earlier ones.
    """
    name = stored.response["id"]
    items = [_shown(item, f"{name}_in_{i}") for i, item in enumerate(stored.input)]
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise ApiError(400, f"response {name!r} has no input item {after!r}", "after")
    start = 0 if after is None else ids.index(after) + 1
    page = items[start : start + limit]
    return {
        "object": "list", "data": page, "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None, "has_more": start + limit < len(items),
    }  # fmt: skip


def _shown(item: Item, id_: str) -> dict[str, Any]:
    """Return an item as OpenAI shows it: with an id, and text as a part."""
    shown: dict[str, Any] = _ITEM.dump_python(item, mode="json", exclude_none=True)
    if shown["type"] == "message" and isinstance(shown["content"], str):
        kind = "output_text" if shown["role"] == "assistant" else "input_text"
        shown["content"] = [{"type": kind, "text": shown["content"]}]
    return {"id": id_, "status": "completed", **shown}
