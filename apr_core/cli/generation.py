"""`apr run`: one prompt, one answer, streamed; and what `apr chat` shares with it."""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from apr_core.cli import model_file
from apr_core.cli.console import (
    diverted,
    print_json,
    show_notices,
    sparing_collections,
    upload_progress,
)
from apr_core.errors import UsageError

if TYPE_CHECKING:
    from apr_core.generate.deltas import Delta
    from apr_core.generate.generate import Generation, Timings
    from apr_core.generate.sampling import SamplingParams
    from apr_core.model.model import Model

Function = Callable[..., Any]
Answer = Generator["Delta", None, None]

kv_type_option = click.option(
    "--kv-type",
    type=click.Choice(["f32", "f16", "q8"]),
    help="Precision of cached keys and values; q8 halves what long contexts cost. Default: f16.",
)
OPTIONS = (
    click.option("--max-tokens", type=click.IntRange(1), help="At most this many tokens."),
    click.option("--temperature", type=float, help="0 is greedy."),
    click.option("--top-k", type=int, help="Sample among the k most likely tokens; 0: all."),
    click.option("--top-p", type=float, help="Sample among the most likely up to this share."),
    click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest."),
    click.option("--seed", type=int, help="The same seed gives the same answer."),
    click.option("--presence-penalty", type=float, help="Subtracted once a token was used."),
    click.option("--frequency-penalty", type=float, help="Subtracted for every use of a token."),
    click.option("--repetition-penalty", type=float, help="Divides scores of used tokens."),
    click.option("--stop", multiple=True, help="Stop before this text; may be repeated."),
    click.option("--system", help="System message."),
    click.option("--thinking", type=click.Choice(["on", "off"]), help="Default: the model's."),
    click.option("--backend", metavar="NAME[:DEVICE]", help="Where to run; the best by default."),
    click.option("--threads", type=click.IntRange(1), help="Default: one a physical core."),
    click.option("--context", type=click.IntRange(1), help="Context in tokens; default: all."),
    kv_type_option,
    click.option("--strict", is_flag=True, help="Refuse slow fallbacks."),
    click.option("-v", "--verbose", is_flag=True, help="Show what runs on what."),
)
CONTROL = dict.fromkeys([*range(32), *range(127, 160)], "\ufffd") | {9: "\t", 10: "\n"}


def generation_options(function: Function) -> Function:
    """Add the options above to a command."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


@click.command()
@click.argument("file")
@click.argument("prompt", required=False)
@generation_options
@click.option("--raw", is_flag=True, help="No chat template: complete the text as it is.")
@click.option("--special", is_flag=True, help="With --raw: read control tokens in the text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(file: str, prompt: str | None, as_json: bool, **options: Any) -> None:
    """Answer PROMPT with the model in FILE.

    FILE is an .apr file, a name that `apr list` shows, or what `apr import` takes, which is then
    imported into the model store. What is piped in comes before PROMPT. PROMPT - reads standard
    input from a terminal too.
    """
    text, file = whole_prompt(prompt), str(model_file(file))
    import apr_core.model.model  # noqa: F401  (before the clock starts, as in `apr bench`)

    started = time.perf_counter()
    with loaded(file, options) as model:
        ids = prompt_ids(model, text, options)
        load_s = time.perf_counter() - started
        answer(model, ids, load_s, as_json, options)


def prompt_ids(model: Model, text: str, options: dict[str, Any]) -> list[int]:
    """Return the prompt's token ids, through the chat template unless --raw."""
    if options["raw"]:
        return model.tokenizer.encode(text, allow_special=options["special"])
    messages = [{"role": "user", "content": text}]
    if options["system"]:
        messages.insert(0, {"role": "system", "content": options["system"]})
    return model.chat_ids(messages, thinking(options))


def answer(
    model: Model, ids: list[int], load_s: float, as_json: bool, options: dict[str, Any]
) -> None:
    """Generate and print."""
    from apr_core.generate.generate import Generation

    result, params = Generation(), sampling_params(model, options)
    pieces = answered(model, ids, result.timings, options)
    if as_json:
        collect(pieces, result, lambda piece: None)
        print_json(as_dict(result, load_s, model, params))
        return
    printer = Printer()
    try:
        collect(pieces, result, printer.show)
    finally:
        if result.timings.prompt_tokens:  # else nothing was printed: the prompt was refused
            printer.end()
            line = speed(result.timings, load_s, result.ended_by)
            click.echo(click.style(line, dim=True), err=True)


def answered(model: Model, ids: list[int], timings: Timings, options: Mapping[str, Any]) -> Answer:
    """Yield the answer to a prompt in pieces, by the options of the command line."""
    limits = {name: options[name] for name in ("max_tokens", "stop")}
    return model.stream(ids, params=sampling_params(model, options), timings=timings, **limits)


def as_dict(
    result: Generation, load_s: float, model: Model, params: SamplingParams
) -> dict[str, Any]:
    """Return the object that --json prints."""
    t = result.timings
    return {
        "text": result.text, "reasoning": result.reasoning, "ids": result.ids,
        "finish_reason": result.finish_reason, "ended_by": result.ended_by,
        "prompt_tokens": t.prompt_tokens, "completion_tokens": t.tokens,
        "backend": model.backend.name,
        "timings": {
            "load_s": load_s, "prefill_s": t.prefill_s, "decode_s": t.decode_s,
            "prefill_tok_s": t.prefill_tok_s, "decode_tok_s": t.decode_tok_s,
        },
        "sampling": dataclasses.asdict(params), "bound": model.report.as_dict(),
        "fallbacks": model.report.fallbacks,
    }  # fmt: skip


def sampling_params(model: Model, options: Mapping[str, Any]) -> SamplingParams:
    """Return the model's defaults, replaced by options of the command line."""
    from apr_core.generate.sampling import SamplingParams

    names = {field.name for field in dataclasses.fields(SamplingParams)}
    given = {name: value for name, value in options.items() if name in names}
    return SamplingParams.from_defaults(model.config.sampling, **given)


@contextmanager
def loaded(file: str, options: Mapping[str, Any]) -> Iterator[Model]:
    """Load the model; print its report to stderr if asked for or if something runs slowly."""
    show_notices()
    with diverted(), sparing_collections(), upload_progress() as uploaded:
        from apr_core.model.model import load

        model = load(
            file,
            options["backend"],
            options["threads"],
            strict=options["strict"],
            max_len=options["context"],
            kv_type=options["kv_type"],
            progress=uploaded,
        )
    with model:
        count = len(model.report.fallbacks)
        if options["verbose"]:
            for line in model.report.lines():
                click.echo(line, err=True)
        elif count:
            click.echo(
                f"! {count} slow or large fallback{'s' if count > 1 else ''} on "
                f"{model.backend.name}: -v shows them, --strict refuses them",
                err=True,
            )
        yield model
        for line in model.report.fallbacks[count:]:  # noted as steps ran
            click.echo(f"! {line}", err=True)


def whole_prompt(prompt: str | None) -> str:
    """Return piped input followed by PROMPT. Raises UsageError if both are empty."""
    typed = "" if prompt in (None, "-") else prompt or ""
    piped = sys.stdin.read() if prompt == "-" or _is_piped() else ""
    text = "\n\n".join(part for part in (piped.rstrip("\n"), typed) if part.strip())
    if not text:
        raise UsageError("the prompt is empty", "Give some text, or - to read standard input.")
    return text


def _is_piped() -> bool:
    """Return True if standard input is a pipe or a file: a socket or device may never end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or no file
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def thinking(options: Mapping[str, Any]) -> bool | None:
    """Return --thinking as the template's `enable_thinking`; None leaves it to the template."""
    return {"on": True, "off": False}.get(options["thinking"])


class Printer:
    """Writes pieces to stdout; reasoning dimmed on a terminal, and to stderr where stdout is not.

    So a pipe receives the answer alone.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._before = ""

    def show(self, piece: Delta) -> None:
        """Write one piece."""
        safe = piece.text.translate(CONTROL)
        if piece.channel == "reasoning":
            click.echo(click.style(safe, dim=True), nl=False, err=not self._terminal)
        elif not piece.text:
            return
        else:
            if self._before == "reasoning":
                click.echo("\n", err=not self._terminal)
            # a pipe gets the text unchanged, colours too
            click.echo(safe if self._terminal else piece.text, nl=False, color=True)
        self._before = piece.channel

    def end(self) -> None:
        """End the line."""
        click.echo()


def collect(pieces: Answer, result: Generation, show: Callable[[Delta], None]) -> None:
    """Show and gather pieces as they come; an interruption ends the generation."""
    with closing(pieces):  # frees the slot now, not when the generator is collected
        for piece in pieces:
            show(piece)
            result.add(piece)


def speed(t: Timings, load_s: float, reason: str) -> str:
    """Return the summary line: tokens, times and speeds."""
    return (
        f"{t.prompt_tokens} prompt tokens at {t.prefill_tok_s:.0f} tok/s, "
        f"{t.tokens} generated at {t.decode_tok_s:.1f} tok/s, load {load_s:.2f} s, "
        f"ended by {reason.replace('_', ' ') or 'interruption'}"
    )
