"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Command, hookimpl


@hookimpl
def apr_commands() -> list[Command]:
    """Declare the commands `apr bench`, `apr calibrate` and `apr diff`."""
    calibrate = "Note what a model's matrices are multiplied with."
    return [
        Command("bench", "apr_eval.bench:command", summary="Measure how fast a file runs here."),
        Command("calibrate", "apr_eval.calibrate:command", summary=calibrate),
        Command("diff", "apr_eval.diff:command", summary="Compare two models, tensors and logits."),
    ]
