"""`apr run`: one prompt, one answer, streamed."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import click

from apr_core.cli.console import print_json
from apr_core.cli.generation import (
    Printer,
    collect,
    generation_options,
    loaded,
    sampling_params,
    speed,
    thinking,
    whole_prompt,
)

if TYPE_CHECKING:
    from apr_core.generate.generate import Generation
    from apr_core.model.model import Model


@click.command()
@click.argument("file", type=click.Path())
@click.argument("prompt", required=False)
@generation_options
@click.option("--raw", is_flag=True, help="No chat template: complete the text as it is.")
@click.option("--special", is_flag=True, help="With --raw: read control tokens in the text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(file: str, prompt: str | None, as_json: bool, **options: Any) -> None:
    """Answer PROMPT with the model in FILE.

    What is piped in comes before PROMPT. PROMPT - reads standard input from a terminal too.
    """
    text = whole_prompt(prompt)
    import apr_core.model.model  # noqa: F401  (before the clock starts, as in `apr bench`)

    started = time.perf_counter()
    with loaded(file, options) as model:
        ids = prompt_ids(model, text, options)
        load_s = time.perf_counter() - started
        answer(model, ids, load_s, as_json, options)


def prompt_ids(model: Model, text: str, options: dict[str, Any]) -> list[int]:
    """The prompt as ids, through the chat template unless --raw."""
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
    pieces = model.stream(
        ids, params=params, max_tokens=options["max_tokens"], stop=options["stop"],
        timings=result.timings,
    )  # fmt: skip
    if as_json:
        collect(pieces, result, lambda piece: None)
        print_json(as_dict(result, load_s, model.backend.name) | {
            "sampling": dataclasses.asdict(params), "bound": model.report.as_dict(),
            "fallbacks": model.report.fallbacks,
        })  # fmt: skip
        return
    printer = Printer()
    try:
        collect(pieces, result, printer.show)
    finally:
        if result.timings.prompt_tokens:  # else nothing was begun: the prompt was refused
            printer.end()
            line = speed(result.timings, load_s, result.ended_by)
            click.echo(click.style(line, dim=True), err=True)


def as_dict(result: Generation, load_s: float, backend: str) -> dict[str, Any]:
    """What --json prints."""
    t = result.timings
    return {
        "text": result.text, "reasoning": result.reasoning, "ids": result.ids,
        "finish_reason": result.finish_reason, "ended_by": result.ended_by,
        "prompt_tokens": t.prompt_tokens, "completion_tokens": t.tokens, "backend": backend,
        "timings": {
            "load_s": load_s, "prefill_s": t.prefill_s, "decode_s": t.decode_s,
            "prefill_tok_s": t.prefill_tok_s, "decode_tok_s": t.decode_tok_s,
        },
    }  # fmt: skip
