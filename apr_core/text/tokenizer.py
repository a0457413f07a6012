"""The tokenizer inside a file. Users' text never becomes a control token unless asked to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from apr_core.errors import FormatError, UsageError
from apr_core.text.tokenizer_files import build, is_added_token, unpack

# {character: byte} of byte-level BPE (Radford et al., 2019)
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
SHIFTED = [b for b in range(256) if b not in PRINTABLE]
BYTE_OF = {chr(b): b for b in PRINTABLE} | {chr(256 + i): b for i, b in enumerate(SHIFTED)}


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token outside the base vocabulary, such as a chat or thinking tag."""

    id: int
    content: str
    special: bool


class Tokenizer:
    """Encodes and decodes. Make one with `from_metadata`.

    `stop_ids` end an answer; `special_tokens` are the names that templates use (`bos_token`).
    `reasoning` are the tags that open and close a thought, where the family has such.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        vocab_size: int,
        stop_ids: Sequence[int] = (),
        special_tokens: Mapping[str, Any] | None = None,
        reasoning: Sequence[str] = (),
    ) -> None:
        self._content = content
        self.vocab_size = vocab_size
        self.stop_ids, self.reasoning = tuple(stop_ids), tuple(reasoning)
        self.special_tokens = {k: v for k, v in (special_tokens or {}).items() if v is not None}
        self.added: dict[str, AddedToken] = {}
        for t in content.get("added_tokens") or []:
            if not is_added_token(t):
                raise FormatError("the tokenizer in the file has an added token without id or text")
            self.added[t["content"]] = AddedToken(t["id"], t["content"], bool(t.get("special")))
        self._added_by_id = {t.id: t for t in self.added.values()}
        self._plain = build({**content, "added_tokens": [], "post_processor": None})
        self._plain.no_truncation()
        self._plain.no_padding()

    def __repr__(self) -> str:
        return f"<Tokenizer: {self.vocab_size} tokens>"

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], reasoning: Sequence[str] = ()) -> Tokenizer:
        """Build the tokenizer of an .apr file. Raises FormatError if it is missing or damaged."""
        content = unpack(metadata)
        if content is None:
            what = "no apr.tokenizer_json"
            if "tokenizer.vocabulary" in metadata:
                kind = metadata.get("tokenizer.pre_type")
                what = f"a vocabulary, but not how text is split (tokenizer.pre_type is {kind!r})"
            raise FormatError(
                f"the file has no tokenizer that can be rebuilt exactly: it holds {what}",
                "Another tool wrote it: import the checkpoint again with this version.",
            )
        size, stops = metadata.get("tokenizer.vocab_size"), metadata.get("apr.stop_ids", [])
        if type(size) is not int or not (
            isinstance(stops, list) and all(type(i) is int for i in stops)
        ):
            raise FormatError("tokenizer.vocab_size or apr.stop_ids in the file is damaged")
        special = metadata.get("special_tokens")
        names = special if isinstance(special, dict) else None
        return cls(content, size, stops, names, reasoning)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """A pattern that matches any added token, longest first."""
        contents = sorted(self.added, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, contents)) or r"(?!)")

    @cached_property
    def valid_size(self) -> int:
        """One past the highest id that is a token; rows of the embedding above are padding."""
        vocab = (self._content.get("model") or {}).get("vocab")
        if not isinstance(vocab, dict):  # other models than BPE list it otherwise
            vocab = self._plain.get_vocab(with_added_tokens=False)
        return max([*vocab.values(), *self._added_by_id], default=-1) + 1

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the text's ids. Added tokens in it stay plain text unless `allow_special`."""
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
        # A batch of one, because only that lets other threads go on: long texts take seconds.
        ids: list[int] = self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def split(self, text: str) -> Iterator[tuple[str, AddedToken | None]]:
        """Yield pieces of the text, each either plain (None) or an added token."""
        at = 0
        for match in self._pattern.finditer(text):
            if match.start() > at:
                yield text[at : match.start()], None
            yield match.group(), self.added[match.group()]
            at = match.end()
        if at < len(text):
            yield text[at:], None

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Return the ids' text. Bytes that are not UTF-8 become U+FFFD; unknown ids are dropped."""
        parts: list[str] = []
        for token, run in groupby(ids, self._added_by_id.get):
            if token is None:
                known = [i for i in run if i >= 0]
                parts.append(self._plain.decode(known, skip_special_tokens=False))
            elif not (skip_special and token.special):
                parts += [token.content for _ in run]
        return "".join(parts)

    @cached_property
    def byte_level(self) -> bool:
        """True if tokens spell bytes, so that text is the joined bytes of its tokens."""
        return (self._content.get("decoder") or {}).get("type") == "ByteLevel"

    def token_bytes(self, id_: int) -> bytes:
        """Return the bytes of a byte-level tokenizer's base token; empty for an unknown id."""
        token = self._plain.id_to_token(id_) or ""
        try:
            return bytes(BYTE_OF[c] for c in token)
        except KeyError:  # an entry that is spelled as text
            return str(token).encode()

    def added_token(self, id_: int) -> AddedToken | None:
        """Return the added token with this id, or None."""
        return self._added_by_id.get(id_)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its exact spelling, or None."""
        if token in self.added:
            return self.added[token].id
        id_: int | None = self._plain.token_to_id(token)
        return id_
