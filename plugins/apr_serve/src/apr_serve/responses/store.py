"""Responses that clients may continue, fetch or delete: in memory, the oldest are dropped first."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from apr_serve.responses.items import Item, ItemReference

MAX_BYTES = 64 << 20  # JSON of all stored responses
_ITEM: TypeAdapter[Item] = TypeAdapter(Item)
_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, its input, and its tenant."""

    response: dict[str, Any]
    input: Sequence[Item]
    tenant: str
    size: int  # bytes of JSON

    @property
    def items(self) -> list[Item]:
        """The items it adds to a conversation."""
        return [*self.input, *_ITEMS.validate_python(self.response["output"])]


class ResponseStore:
    """Holds up to `max_bytes` of responses. No tenant sees another's."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._made_by: dict[str, str] = {}  # item id to id of its response

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, response: dict[str, Any], input_: Sequence[Item], tenant: str) -> None:
        """Store a response, unless it alone is larger than `max_bytes`."""
        size = len(_ITEMS.dump_json(list(input_))) + len(json.dumps(response))
        if size > self._max_bytes:
            return
        self._stored[response["id"]] = Stored(response, input_, tenant, size)
        self._made_by |= {item["id"]: response["id"] for item in response["output"]}
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._stored)))

    def _forget(self, id_: str) -> None:
        entry = self._stored.pop(id_)
        self._bytes -= entry.size
        for item in entry.response["output"]:
            del self._made_by[item["id"]]

    def get(self, id_: str, tenant: str) -> Stored | None:
        """Return the response and mark it as used last; None if the tenant has none of this id."""
        entry = self._stored.get(id_)
        if entry is None or entry.tenant != tenant:
            return None
        self._stored.move_to_end(id_)
        return entry

    def delete(self, id_: str, tenant: str) -> bool:
        """Delete a response; return True if there was one."""
        if self.get(id_, tenant) is None:
            return False
        self._forget(id_)
        return True

    def resolved(self, items: Sequence[Item], tenant: str) -> list[Item]:
        """Return the items with references replaced by the stored items."""
        return [self._item(i.id, tenant) or i if isinstance(i, ItemReference) else i for i in items]

    def _item(self, id_: str, tenant: str) -> Item | None:
        made_by = self.get(self._made_by.get(id_, ""), tenant)
        output = made_by.response["output"] if made_by else ()
        return next((_ITEM.validate_python(item) for item in output if item["id"] == id_), None)

    def conversation(self, id_: str, tenant: str) -> list[Item]:
        """Return all items up to and with this response. Raises KeyError with a missing id."""
        turns = list(self._turns(id_, tenant))
        return [item for turn in reversed(turns) for item in turn.items]

    def _turns(self, id_: str | None, tenant: str) -> Iterator[Stored]:
        """Yield the responses from this one back to the first."""
        while id_ is not None:
            turn = self.get(id_, tenant)
            if turn is None:
                raise KeyError(id_)
            yield turn
            id_ = turn.response["previous_response_id"]
