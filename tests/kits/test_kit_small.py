"""The kits of recipes, sources, exporters and commands: right ones pass, each check catches one."""

from __future__ import annotations

import pytest

from apr_core.cli import COMMANDS
from apr_core.declarations import Command, Exporter, Recipe, Source
from apr_core.discovery import PluginRow
from apr_core.errors import InputOutputError
from apr_core.family.schema import schema
from apr_core.registry import Registry, get_registry
from apr_devkit.kits import (
    CommandConformance,
    ExporterConformance,
    RecipeConformance,
    SourceConformance,
    run_checks,
)
from apr_devkit.kits.checks import run_check
from apr_devkit.kits.quantizer import CLASSES
from tests.kits import caught
from tests.kits.broken import quantizers as broken_quantizers
from tests.kits.broken import small as broken_small

pytestmark = pytest.mark.needs_plugins

KITS = {
    "recipe": (RecipeConformance, Recipe), "source": (SourceConformance, Source),
    "exporter": (ExporterConformance, Exporter), "command": (CommandConformance, Command),
}  # fmt: skip


def own_checks(kind):
    return caught.own_checks(KITS[kind][0])


def kit(kind, target, name="toy", *, registry=None, summary="Say hello", **attributes):
    """A kit of one object of broken_small, in a registry with a quantizer `toy`."""
    base, record = KITS[kind]
    fields = {"formats": attributes.pop("formats", ("toy",))} if kind == "recipe" else {}
    declared = record(name, f"tests.kits.broken.small:{target}", summary=summary, **fields)
    quantizer = broken_quantizers.declare(broken_quantizers.Plain)
    results = registry or Registry.from_declarations({"toys": [declared, quantizer]})
    return type("Toy", (base,), {kind: name, "registry": results} | attributes)


def with_families(target):
    """A registry of everything that is installed, with one exporter more."""
    declared = Exporter("toy", f"tests.kits.broken.small:{target}", summary="a toy")
    quantizer = broken_quantizers.declare(broken_quantizers.Plain)
    recipe = Recipe("all-toy", "tests.kits.broken.small:Recipe", summary="a toy", formats=("toy",))
    row = PluginRow("a-toy", "0", "toys", "", "ok", "", (declared, quantizer, recipe))
    return Registry([row, *get_registry().plugins])


def exporter_kit(target, **attributes):
    return kit("exporter", target, registry=with_families(target), **attributes)


def toy_kit(kind, target, **options):
    return exporter_kit(target) if kind == "exporter" else kit(kind, target, **options)


RIGHT = {"recipe": "Recipe", "source": "fetch", "exporter": "export", "command": "command"}


@pytest.mark.parametrize(("kind", "target"), RIGHT.items())
def test_a_right_one_passes_everything(kind, target):
    results = list(run_checks(toy_kit(kind, target), own_checks(kind)))
    assert {r.outcome for r in results} == {"passed"}, [r for r in results if r.reason]
    assert len(results) >= 3


CAUGHT = [
    ("recipe", "Forgets", "every_tensor_gets_a_format_it_lists", "class head, shape [256, 256]"),
    ("recipe", "PicksWhatItDoesNotList", "every_tensor_gets_a_format_it_lists", "'secret'"),
    ("recipe", "NeedsALayer", "every_tensor_gets_a_format_it_lists", "TypeError"),
    ("recipe", "Counts", "the_same_answers_every_time", "asked backwards: class"),
    ("recipe", "PicksFromASet", "the_same_answers_every_time", "in another process ("),
    ("source", "takes_no_options", "it_is_called_as_apr_calls_it", "fetch(url) cannot be called"),
    ("source", "raises_another_error", "an_unknown_name_is_not_found", "raises AprError"),
    ("source", "raises_key_error", "an_unknown_name_is_not_found", "raises KeyError"),
    ("source", "says_no_name", "an_unknown_name_is_not_found", "'no such model' does not say"),
    (
        "source",
        "finds_everything",
        "an_unknown_name_is_not_found",
        "gives a path; expected an AprError",
    ),
    ("source", "leaves_a_part", "an_unknown_name_is_not_found", "leaves download.part"),
    ("source", "leaves_a_lock_at_home", "an_unknown_name_is_not_found", ".toy/lock"),
    ("source", "returns_text", "the_example_is_a_checkpoint", "returned a str"),
    ("source", "has_no_weights", "the_example_is_a_checkpoint", "no *.safetensors"),
    ("source", "has_a_list_for_config", "the_example_is_a_checkpoint", "no JSON object"),
    ("source", "changes_when_forced", "fetching_again_gives_the_same", "force=True"),
    ("source", "reports_a_share", "fetching_again_gives_the_same", "0.5"),
    ("source", "reports_one_number", "fetching_again_gives_the_same", "(2,)"),
    ("source", "prints", "fetching_again_gives_the_same", "fetching toy://small"),
    ("exporter", "raises_a_bug", "the_summary_is_true", "KeyError: 'apr.family'"),
    ("exporter", "returns_nothing", "the_summary_is_true", "returned None"),
    ("exporter", "forgets_warnings", "the_summary_is_true", "result['warnings']"),
    ("exporter", "warns_with_numbers", "the_summary_is_true", "holds 3"),
    ("exporter", "names_another_path", "the_summary_is_true", "model.toy.bin', expected"),
    ("exporter", "writes_nothing", "the_summary_is_true", "there is nothing at"),
    ("exporter", "counts_wrongly", "the_summary_is_true", "bytes of the result is 12, expected"),
    ("exporter", "leaves_out_what_is_not_there", "the_summary_is_true", "no.such.weight"),
    ("exporter", "writes_a_log", "nothing_else_is_written", "export.log"),
    ("exporter", "prints_while_exporting", "nothing_else_is_written", "exporting"),
    ("exporter", "stamps_the_time", "the_same_bytes_every_time", "exported again, other bytes"),
    ("exporter", "hashes_strings", "the_same_bytes_every_time", "in another process, other"),
    ("exporter", "never_reports", "progress_adds_up_to_the_work", "never calls progress.advance"),
    ("exporter", "reports_shares", "progress_adds_up_to_the_work", "adds up to 0.99"),
    ("exporter", "reports_text", "progress_adds_up_to_the_work", "called with 'half'"),
    ("exporter", "writes_in_place", "a_failed_export_changes_nothing", "OSError at report 1"),
    ("exporter", "leaves_a_part_on_ctrl_c", "a_failed_export_changes_nothing", "after Interrupted"),
    ("exporter", "goes_on", "a_failed_export_changes_nothing", "goes on after OSError"),
    ("exporter", "removes_first", "a_failed_export_changes_nothing", "destroys the file"),
    ("exporter", "refuses_packed_in_the_middle", "packed_weights_are_written_or_refused", "leaves"),
    ("command", "no_command", "the_target_is_a_command", "is a function, expected"),
    ("command", "says_something_else", "help_is_there_and_light", "does not say 'Say hello'"),
    ("command", "has_no_help", "help_is_there_and_light", "exit code of --help, which says"),
    ("command", "helps_with_numpy", "help_is_there_and_light", "imports numpy"),
    ("command", "takes_anything", "a_wrong_option_is_a_usage_error", "is 0, expected 2"),
]
ELSEWHERE = {"test_listed_formats_are_installed", "test_the_name_can_be_typed_and_is_not_taken"}


@pytest.mark.parametrize(("kind", "target", "check", "reason"), CAUGHT)
def test_a_wrong_one_is_caught(kind, target, check, reason):
    options = {"url": "toy://small"} if kind == "source" else {}
    result = run_check(toy_kit(kind, target, **options), f"test_{check}")
    assert result.outcome == "failed", result
    assert reason in result.reason


def test_every_check_has_somebody_it_catches():
    shown = {f"test_{check}" for _, _, check, _ in CAUGHT}
    assert shown | ELSEWHERE == {name for kind in KITS for name in own_checks(kind)}


def test_recipes_are_asked_about_every_class_of_the_contracts():
    assert schema()["quantization_policy.*"] == f"enum[keep, {', '.join(CLASSES)}]"


def test_a_format_that_is_not_installed_is_named():
    toy_kit = kit("recipe", "Recipe", formats=("toy", "q4_k"))
    result = run_check(toy_kit, "test_listed_formats_are_installed")
    assert result.outcome == "skipped"
    assert "not installed: q4_k (Install the package that provides it" in result.reason


def test_a_float_in_the_list_is_caught():
    toy_kit = kit("recipe", "Recipe", formats=("toy", "f16"))
    result = run_check(toy_kit, "test_listed_formats_are_installed")
    assert result.outcome == "failed" and "'f16'" in result.reason


def test_a_format_of_two_owners_is_caught():
    quantizer = broken_quantizers.declare(broken_quantizers.Plain)
    recipe = Recipe("toy", "tests.kits.broken.small:Recipe", summary="a toy", formats=("toy",))
    both = Registry.from_declarations({"a": [recipe, quantizer], "b": [quantizer]})
    toy_kit = kit("recipe", "Recipe", registry=both)
    result = run_check(toy_kit, "test_listed_formats_are_installed")
    assert result.outcome == "failed" and "a:toy, b:toy" in result.reason


def test_without_a_url_the_targets_own_example_is_fetched(monkeypatch):
    monkeypatch.delattr(broken_small.fetch, "example_url")
    result = run_check(kit("source", "fetch"), "test_the_example_is_a_checkpoint")
    assert result.outcome == "skipped" and "example_url" in result.reason
    monkeypatch.setattr(broken_small.fetch, "example_url", "toy://nothing", raising=False)
    result = run_check(kit("source", "fetch"), "test_the_example_is_a_checkpoint")
    assert result.outcome == "failed" and "toy://nothing" in result.reason


def test_a_source_that_cannot_be_reached_is_skipped(monkeypatch):
    def offline(url, *, progress=None, force=False):
        raise InputOutputError("no network")

    monkeypatch.setattr(broken_small, "fetch", offline)
    result = run_check(kit("source", "fetch"), "test_an_unknown_name_is_not_found")
    assert result.outcome == "skipped" and "no network" in result.reason


def test_an_exporter_that_knows_no_family_is_skipped_unless_one_was_promised():
    check = "test_the_summary_is_true"
    result = run_check(exporter_kit("refuses"), check)
    assert result.outcome == "skipped" and "knows no such family" in result.reason
    family = get_registry().declarations("family")[0].declaration.name
    result = run_check(exporter_kit("refuses", family=family), check)
    assert result.outcome == "failed" and f"{family}: knows no such family" in result.reason


def test_an_exporter_without_families_or_recipes_is_skipped():
    alone = kit("exporter", "export")
    assert "there is none" in run_check(alone, "test_the_summary_is_true").reason
    families = Registry([
        PluginRow(
            "a", "0", "a", "", "ok", "", (Exporter("toy", "tests.kits.broken.small:export"),)
        ),
        *(r for r in get_registry().plugins if any(d.kind == "family" for d in r.declarations)),
    ])  # fmt: skip
    toy_kit = kit("exporter", "export", registry=families)
    result = run_check(toy_kit, "test_packed_weights_are_written_or_refused")
    assert (result.outcome, result.reason) == (
        "skipped",
        "no recipe with a block format is installed",
    )


def test_an_exporter_without_progress_cannot_be_stopped():
    result = run_check(exporter_kit("never_reports"), "test_a_failed_export_changes_nothing")
    assert result.outcome == "skipped" and "never reports progress" in result.reason


def test_the_exporter_of_the_core_passes():
    row = PluginRow(
        "core",
        "0",
        "core",
        "",
        "ok",
        "",
        (Exporter("toy", "apr_core.exporting:export", summary="a directory"),),
    )
    toy_kit = kit("exporter", "export", registry=Registry([row, *get_registry().plugins]))
    results = list(run_checks(toy_kit, own_checks("exporter")))
    assert {r.outcome for r in results} == {"passed"}, [r for r in results if r.reason]


@pytest.mark.parametrize("name", ["run", "Hello", "two words", "-x"])
def test_a_name_that_is_taken_or_cannot_be_typed_is_caught(name):
    toy_kit = kit("command", "command", name=name)
    result = run_check(toy_kit, "test_the_name_can_be_typed_and_is_not_taken")
    assert result.outcome == "failed"
    assert name not in COMMANDS or "is built in" in result.reason


def test_a_kit_that_does_not_say_what_it_is_about_fails():
    result = run_check(type("Nameless", (CommandConformance,), {}), "test_help_is_there_and_light")
    assert (result.subject, result.outcome) == ("Nameless", "failed")
    assert 'must say which: command = "..."' in result.reason
