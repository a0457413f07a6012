"""The tokenizer inside a file. Text of a user never becomes a control token unless asked to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from apr_core.errors import FormatError, UsageError
from apr_core.text.tokenizer_files import read_json, unpack, with_added_tokens


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token outside the base vocabulary, such as a chat or thinking tag."""

    id: int
    content: str
    special: bool


class Tokenizer:
    """Encodes and decodes. Make one with `from_metadata` or `from_directory`."""

    def __init__(
        self, content: Mapping[str, Any], vocab_size: int, stop_ids: Sequence[int] = ()
    ) -> None:
        from tokenizers import Tokenizer as Backend

        self._content = content
        self.vocab_size = vocab_size
        self.stop_ids = tuple(stop_ids)
        self.added: dict[str, AddedToken] = {}
        for t in content.get("added_tokens") or []:
            if not (isinstance(t, dict) and type(t.get("id")) is int and t.get("content")):
                raise FormatError("the tokenizer in the file has an added token without id or text")
            self.added[t["content"]] = AddedToken(t["id"], t["content"], bool(t.get("special")))
        self._added_by_id = {t.id: t for t in self.added.values()}
        plain = {**content, "added_tokens": [], "post_processor": None}
        try:
            self._plain = Backend.from_str(json.dumps(plain, ensure_ascii=False))
        except Exception as error:  # the package raises bare Exception
            raise FormatError(f"the tokenizer cannot be built: {error}") from None
        self._plain.no_truncation()
        self._plain.no_padding()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer of an .apr file. Raises FormatError if it has none or a damaged one."""
        content = unpack(metadata)
        if content is None:
            raise FormatError(
                "the file has no tokenizer that can be rebuilt exactly (apr.tokenizer_json)",
                "Import the checkpoint again with this version.",
            )
        size, stops = metadata.get("tokenizer.vocab_size"), metadata.get("apr.stop_ids", [])
        if type(size) is not int or not (
            isinstance(stops, list) and all(type(i) is int for i in stops)
        ):
            raise FormatError("tokenizer.vocab_size or apr.stop_ids in the file is damaged")
        return cls(content, size, stops)

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """The tokenizer of a checkpoint. Raises NotFound or FormatError."""
        config_path = directory / "tokenizer_config.json"
        config = read_json(config_path) if config_path.exists() else {}
        content = with_added_tokens(read_json(directory / "tokenizer.json"), config, directory)
        ids = [*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])]
        return cls(content, max(ids) + 1)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Matches any added token, longest first."""
        contents = sorted(self.added, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, contents)) or r"(?!)")

    @cached_property
    def valid_size(self) -> int:
        """One past the highest id that is a token; rows of the embedding above are padding."""
        ids = [*self._plain.get_vocab(with_added_tokens=False).values(), *self._added_by_id]
        return max(ids, default=-1) + 1

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of the text. Added tokens in it stay plain text unless `allow_special`."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not valid Unicode: {error}") from None
        if not allow_special:
            return self._encode_plain(text)
        ids: list[int] = []
        for piece, token in self.split(text):
            ids += [token.id] if token else self._encode_plain(piece)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def split(self, text: str) -> Iterator[tuple[str, AddedToken | None]]:
        """Pieces of the text, each either plain (None) or an added token."""
        at = 0
        for match in self._pattern.finditer(text):
            if match.start() > at:
                yield text[at : match.start()], None
            yield match.group(), self.added[match.group()]
            at = match.end()
        if at < len(text):
            yield text[at:], None

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of the ids. Bytes that are no UTF-8 become U+FFFD, unknown ids nothing."""
        parts, run = [], []
        for i in [*ids, -1]:
            token = self._added_by_id.get(i)
            if token is None and i >= 0:
                run.append(i)
                continue
            if run:
                parts.append(self._plain.decode(run, skip_special_tokens=False))
                run = []
            if token and not (skip_special and token.special):
                parts.append(token.content)
        return "".join(parts)

    def added_token(self, id_: int) -> AddedToken | None:
        """The added token with this id, if it is one."""
        return self._added_by_id.get(id_)

    def token_id(self, token: str) -> int | None:
        """The id of a token's own spelling."""
        if token in self.added:
            return self.added[token].id
        found: int | None = self._plain.token_to_id(token)
        return found
