"""`apr bench`: how fast a file runs on this machine, and what bounds it."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from apr_core.runtime import (
    diverted,
    human_bytes,
    kv_type_option,
    model_file,
    print_json,
    print_table,
    progress,
    show_notices,
    sparing_collections,
    upload_progress,
)

if TYPE_CHECKING:
    from apr_core.plugin import KVType
    from apr_core.runtime import Model
    from apr_eval.measuring import Measurement, Plan
    from apr_eval.profiling import Profile


@click.command()
@click.argument("file")
@click.option(
    "--warmup",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Warm-up runs (not counted).",
)
@click.option(
    "--measure", type=click.IntRange(1), default=10, show_default=True, help="Measured runs."
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Tokens of a prompt.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Tokens to generate after it.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Sequences that decode together.",
)
@click.option(
    "--backend", metavar="NAME[:DEVICE]", help="Where to run; default: what fits this machine best."
)
@click.option("--threads", type=click.IntRange(1), help="Default: one a physical core.")
@kv_type_option
@click.option("--profile", "with_profile", is_flag=True, help="A table of time by op.")
@click.option("--strict", is_flag=True, help="Refuse slow fallbacks.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    file: str,
    backend: str | None,
    threads: int | None,
    kv_type: KVType | None,
    with_profile: bool,
    strict: bool,
    as_json: bool,
    **plan: int,
) -> None:
    """Measure how fast a file runs here.

    Load, time to first token, prefill, decode, and the share of the memory bandwidth.
    """
    loading = {"backend": backend, "threads": threads, "strict": strict, "kv_type": kv_type}
    result = run_bench(file, loading, with_profile, plan)
    if as_json:
        print_json(result)
    else:
        _print(result)


def run_bench(
    file: str, loading: dict[str, Any], with_profile: bool, options: dict[str, int]
) -> dict[str, Any]:
    """Return everything that `--json` prints. `loading` is what `load` takes beside the file."""
    from apr_core.runtime import load
    from apr_eval.measuring import Plan, measure, memory_bandwidth

    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    plan = Plan(**options)
    path = model_file(file)
    show_notices()
    with diverted(), sparing_collections(), upload_progress() as uploaded:
        started = time.perf_counter()
        length = plan.prompt_tokens + plan.max_tokens  # a device needs no room for more
        model = load(path, **loading, max_len=length, progress=uploaded)
        load_s = time.perf_counter() - started
    with model:
        plan.check(model)
        with progress("measuring", plan.warmup + plan.measure, unit="runs") as bar:
            measurement = measure(model, plan, lambda: bar.advance(1))
        used = getattr(model.backend, "threads", None) or os.cpu_count() or 1
        result = _facts(
            file, model.backend.name, model, plan, measurement, used
        )  # peak memory: before the next
        own = model.backend.capacity() is not None  # memory that no thread of this machine reads
        bandwidth = None if own else memory_bandwidth(used)
        result |= {
            "load_s": load_s,
            "memory_bandwidth_bytes_s": bandwidth,
            "bandwidth_share": measurement.bandwidth_share(bandwidth) if bandwidth else None,
            "load_average": busy,
        }
        if with_profile:
            result["profile"] = _profiles(model, plan)
    return result


def _facts(
    file: str, backend: str, model: Model, plan: Plan, measurement: Measurement, threads: int
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "file": file, "backend": backend, "device": model.report.device, "threads": threads,
        **dataclasses.asdict(plan), "kv_type": model.kv_type,
    }  # fmt: skip
    for name in ("ttft_s", "prefill_tok_s", "decode_tok_s"):
        spread = getattr(measurement, name)
        result |= {name: spread.median, f"{name}_p10": spread.p10, f"{name}_p90": spread.p90}
    return result | {
        "decode_tok_s_per_sequence": measurement.decode_tok_s.median / plan.batch,
        "bytes_per_token": measurement.bytes_per_token, "weight_bytes": measurement.weight_bytes,
        "state_bytes": measurement.state_bytes, "peak_memory_bytes": _peak_memory(),
        "bound": model.report.as_dict(), "fallbacks": model.report.fallbacks,
    }  # fmt: skip


def _peak_memory() -> int | None:
    """Return the peak of resident bytes, or None; mapped pages of the file count."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _profiles(model: Model, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Return time by op, from separate runs because timing ops costs time."""
    from apr_eval.measuring import prefill
    from apr_eval.profiling import profiled

    valid = model.tokenizer.valid_size
    ids = [7 * i % valid for i in range(plan.prompt_tokens)]
    slots = [model.new_slot() for _ in range(plan.batch)]
    try:
        with profiled(model) as reading:
            prefill(model, slots[0], ids)
        for slot in slots[1:]:
            prefill(model, slot, ids)
        with profiled(model) as decode:
            for _ in range(plan.max_tokens):
                model.forward([(slot, [1]) for slot in slots])
    finally:
        for slot in slots:
            model.free_slot(slot)
    return {"prefill": reading.rows(), "decode": _a_step(decode, plan.max_tokens)}


def _a_step(profile: Profile, steps: int) -> list[dict[str, Any]]:
    """Return the rows of one step, on average."""
    return [
        row | {"calls": row["calls"] / steps, "seconds": row["seconds"] / steps}
        for row in profile.rows()
    ]


def _print(r: dict[str, Any]) -> None:
    click.echo(f"{r['file']} on {r['device']}")
    each = f" ({r['decode_tok_s_per_sequence']:.1f} each)" if r["batch"] > 1 else ""
    rows = [
        ("load", f"{r['load_s']:.3f} s", "", ""),
        _row("time to first token", r, "ttft_s", 3, "s"),
        _row(f"prefill of {r['prompt_tokens']}", r, "prefill_tok_s", 1, "tok/s"),
        _row(f"decode, batch {r['batch']}", r, "decode_tok_s", 1, f"tok/s{each}"),
    ]
    print_table(rows, ("", "median", "p10", "p90"))
    click.echo(f"a token reads {human_bytes(r['bytes_per_token'])}{_of_bandwidth(r)}")
    for phase, profile in r.get("profile", {}).items():
        click.echo()
        unit = "of one prompt" if phase == "prefill" else "of one step"
        table = [
            (
                p["op"],
                p["kernel"].rpartition(".")[2],
                f"{p['calls']:.0f}",
                f"{1e3 * p['seconds']:.2f}",
                f"{100 * p['share']:.1f} %",
            )
            for p in profile
        ]
        print_table(table, (f"{phase}, {unit}", "kernel", "calls", "ms", "share"))
    for fallback in r["fallbacks"]:
        click.echo(f"{click.style('slow:', fg='yellow')} {fallback}", err=True)
    if r["load_average"] > (os.cpu_count() or 1) / 2:
        click.echo(
            f"{click.style('note:', fg='yellow')} the machine was busy before this run (load "
            f"average {r['load_average']:.1f}): the figures are lower than they could be",
            err=True,
        )


def _of_bandwidth(r: dict[str, Any]) -> str:
    if r["memory_bandwidth_bytes_s"] is None:  # of a device's own memory, which is not measured
        return ""
    return (
        f": {100 * r['bandwidth_share']:.0f} % of the {r['memory_bandwidth_bytes_s'] / 1e9:.1f} "
        f"GB/s that {r['threads']} threads can read"
    )


def _row(name: str, r: dict[str, Any], key: str, digits: int, unit: str) -> tuple[str, ...]:
    return (
        name, f"{r[key]:.{digits}f} {unit}", f"{r[key + '_p10']:.{digits}f}",
        f"{r[key + '_p90']:.{digits}f}",
    )  # fmt: skip
