"""Constraints of answers to JSON, to a schema, or to tool calls. Knows no protocol.

Built on llguidance, an optional dependency: its grammars are compiled and tried once, when the
request comes, so that a schema it cannot enforce is refused before anything is generated. No part
of a schema is silently ignored.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from apr_core.plugin import UsageError
from apr_serve.engine.interface import Constraint
from apr_serve.grammar.call_grammar import calls_grammar
from apr_serve.grammar.schemas import checked, multiplies, property_count
from apr_serve.grammar.trial import compiles_in_time
from apr_serve.tools.tool_calls import Form

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

    from apr_core.runtime import Tokenizer
    from apr_serve.grammar.call_grammar import CalledTool

T = TypeVar("T")
STACK = 64 << 20  # bytes; the compiler recurses, `schemas` bounds how deep
# Line breaks a template sets after thinking. Space inside JSON is bounded: without a bound, models
# sometimes write white space forever.
LEAD_LINES = 2
LEAD = rf"/\n{{0,{LEAD_LINES}}}/"
SPACED = {"whitespace_pattern": r"[ \n\r\t]{1,80}"}
FORMAT = "response_format"
MAX_ARGUMENTS = 5000  # of all tools: a second or two to compile

# Our grammar around a schema, as the library's messages show it.
SHOWN_GRAMMAR = re.compile(r"\n *\d+ \|")


@dataclass(frozen=True, slots=True)
class Called:
    """A tool with the schema that its arguments must satisfy."""

    name: str
    parameters: Mapping[str, Any]


_built: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()
_lock = threading.Lock()


def json_object(tokenizer: Tokenizer) -> Callable[[], Constraint]:
    """Return a constraint to any JSON object."""
    return json_schema(tokenizer, {"type": "object"})


def json_schema(
    tokenizer: Tokenizer, schema: Mapping[str, Any], where: str = FORMAT
) -> Callable[[], Constraint]:
    """Return a constraint to JSON that the schema describes, properties in the schema's order.

    Raises UsageError, beginning with `where`, for a schema that is wrong, too large, or uses what
    the library does not support.
    """
    grammar = f"start: {LEAD} value\nvalue: {_json(schema, where)}\n"
    return _compiled(tokenizer, grammar, where, multiplies(schema))


def tool_calls(
    tokenizer: Tokenizer,
    tools: Sequence[CalledTool],
    required: bool = True,
    parallel: bool = True,
    form: Form | None = "tags",
    answer: Mapping[str, Any] | None = None,
) -> Callable[[], Constraint]:
    """Return a constraint to calls of `tools`, in the form that the model's template teaches.

    Arguments satisfy the tools' schemas. `form` comes from `tools.tool_calls.form_of`. `required`:
    nothing but calls; otherwise an answer, which is free text or JSON of the schema `answer`, may
    come instead. Without `parallel` there is one call. Raises UsageError naming the tool.
    """
    if form is None:
        raise UsageError("tools: the chat template of this model teaches no calls of tools")
    if not tools:
        raise UsageError("tools: a call is required, but there are no tools")
    _library()
    tools = [Called(tool.name, checked(tool.parameters, f"tool {tool.name}")) for tool in tools]
    arguments = sum(property_count(tool.parameters) for tool in tools)
    if arguments > MAX_ARGUMENTS:
        excess = f"{arguments} arguments in all, calls can be held to {MAX_ARGUMENTS}"
        raise UsageError(f"tools: they have {excess}", "Require one of them, or give fewer.")
    other = "" if required else _json(answer, FORMAT) if answer is not None else "text"
    costly = any(multiplies(schema) for schema in [answer, *(t.parameters for t in tools)])

    def grammar(some: Sequence[CalledTool]) -> str:
        return calls_grammar(tokenizer, some, parallel, form, LEAD, other)

    where = "tools" if len(tools) > 1 else f"tool {tools[0].name}"
    try:
        return _compiled(tokenizer, grammar(tools), where, costly)
    except UsageError:
        for tool in tools if len(tools) > 1 else ():
            _compiled(tokenizer, grammar([tool]), f"tool {tool.name}", costly)
        raise


def prepare(tokenizer: Tokenizer) -> None:
    """Build what grammars need of the tokenizer: about a second for a large vocabulary."""
    _library_tokenizer(tokenizer)


def _json(schema: Mapping[str, Any], where: str) -> str:
    return "%json " + json.dumps({**checked(schema, where), "x-guidance": SPACED})


def _library() -> Any:
    import llguidance

    return llguidance


class _Vocabulary:
    """The tokenizer as the library asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        size = tokenizer.vocab_size
        self.tokens = [tokenizer.token_bytes(i) for i in range(size)]
        for token in tokenizer.added.values():
            self.tokens[token.id] = token.content.encode()
        self.special_token_ids = [token.id for token in tokenizer.added.values()]
        self.bos_token_id = None
        self.tokens.append(b"")  # stands for the end where the tokenizer has no token for it
        self.ends = [i for i in tokenizer.stop_ids if i < size] or [size]
        self.eos_token_id = self.ends[0]

    def __call__(self, text: str | bytes) -> list[int]:
        string = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._tokenizer.encode(string)


def _library_tokenizer(tokenizer: Tokenizer) -> LLTokenizer:
    """Return the library's own tokenizer, built once."""
    library = _library()
    with _lock:
        if tokenizer not in _built:
            if not tokenizer.byte_level:
                raise UsageError("structured output needs a tokenizer whose tokens spell bytes")
            words = _Vocabulary(tokenizer)
            _built[tokenizer] = library.LLTokenizer(
                library.TokenizerWrapper(words), n_vocab=len(words.tokens), eos_token=words.ends
            )
        return _built[tokenizer]


def _compiled(
    tokenizer: Tokenizer, grammar: str, where: str, costly: bool
) -> Callable[[], Constraint]:
    """Compile a grammar and take its first step. Raises UsageError with the library's words."""
    library, words = _library(), _library_tokenizer(tokenizer)
    if costly and not compiles_in_time(grammar):
        raise UsageError(f"{where}: the schema is too complex", "Combine fewer schemas in it.")

    def build() -> LLMatcher:
        matcher = library.LLMatcher(
            words,
            library.LLMatcher.grammar_from_lark(grammar),
            log_level=0,
            limits=library.LLParserLimits(verbose_errors=False),
        )
        tried = matcher.deep_copy()
        for token in tokenizer.encode("\n") * LEAD_LINES:
            tried.consume_token(token)
            tried.compute_bitmask()
        problem = matcher.get_error() or tried.get_error() or matcher.get_grammar_warnings()
        if problem:
            raise UsageError(f"{where}: {_plainly(problem)}")
        return matcher  # type: ignore[no-any-return]

    matcher = _with_deep_stack(build)
    stops = np.array([i for i in tokenizer.stop_ids if i < tokenizer.vocab_size], np.int64)
    return lambda: _Matching(matcher.deep_copy(), stops, where)


def _with_deep_stack(work: Callable[[], T]) -> T:
    """Run `work` in a thread with a large stack."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as error:
            result.set_exception(error)
        except BaseException as error:  # a panic of native code
            result.set_exception(UsageError(f"the grammar library gave up: {error}"))

    with _lock:
        before = threading.stack_size(STACK)
        try:
            threading.Thread(target=run, name="apr-grammar").start()
        finally:
            threading.stack_size(before)
    return result.result()


def _plainly(problem: str | list[str]) -> str:
    """Return the library's message without the grammar it quotes."""
    problem = problem if isinstance(problem, str) else problem[0]
    if problem.startswith("NoExtension"):
        return "nothing can satisfy the schema"
    text = SHOWN_GRAMMAR.split(problem)[0].split("\n<")[0]
    lines = [line for line in text.splitlines() if not set(line) <= set(" ^")]
    text = " ".join(line.strip() for line in lines)
    text = text.partition("failed to compile JSON schema: ")[2] or text
    if "invalid regex" in text:  # it shows our version of the pattern
        text = "a pattern or length in the schema: " + text.rpartition("error: ")[2]
    text = text.replace("Unimplemented keys", "unsupported keywords in the schema")
    return text.replace(
        "Enable 'coerce_one_of' option to approximate oneOf with anyOf", "use anyOf"
    )


class _Matching:
    """The state of one answer in a compiled grammar."""

    def __init__(self, matcher: LLMatcher, stops: NDArray[np.int64], where: str) -> None:
        self._matcher, self._stops, self._where = matcher, stops, where
        self._ended = False

    def mask(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [vocab] with forbidden tokens at -inf; in place where possible.

        Tokens that end answers are allowed exactly where the grammar is satisfied. Raises
        UsageError if the grammar becomes too complex to go on.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        forbidden = np.ones(len(scores), np.bool_)  # [vocab]
        known = np.unpackbits(bits, bitorder="little")[: len(scores)]
        forbidden[: len(known)] = known == 0
        forbidden[self._stops[self._stops < len(scores)]] = not self._matcher.is_accepting()
        if not scores.flags.writeable:
            scores = scores.copy()
        scores[forbidden] = -np.inf
        return scores

    def accept(self, token: int) -> None:
        """Advance by a token. Raises UsageError for one that `mask` forbids."""
        if token in self._stops:
            self._ended = True
        elif not self._matcher.consume_token(token):
            self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._ended or bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"{self._where}: {_plainly(self._matcher.get_error())}")
