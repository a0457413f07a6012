"""The kit of commands: they help without a wait, refuse wrong options and shadow nothing."""

from __future__ import annotations

import json
import re
from typing import Any

from apr_devkit.kits.fresh import run_fresh
from apr_devkit.kits.plugin import PluginConformance

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# what takes long to import; compilers and device libraries come with one of these
HEAVY = (
    "numpy", "torch", "transformers", "tokenizers", "safetensors", "jax", "tensorflow", "scipy",
    "pandas",
)  # fmt: skip
WRONG_OPTION = "--apr-kit-no-such-option"
USAGE = 2  # exit code

RUN = """
import contextlib, io, json, sys
from importlib import import_module
before = set(sys.modules)
out, err, code = io.StringIO(), io.StringIO(), 0
module, _, attribute = sys.argv[1].partition(":")
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    command = getattr(import_module(module), attribute)
    try:
        command.main(args=sys.argv[3:], prog_name="apr " + sys.argv[2])
    except SystemExit as error:
        code = error.code or 0
print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(),
                  "modules": sorted(set(sys.modules) - before)}))
"""


class CommandConformance(PluginConformance):
    """Checks of one command.

        class TestMine(CommandConformance):
            command = "mine"

    The command is run in processes of its own, with `--help` and with a wrong option.
    """

    kind = "command"
    command: str = ""

    def run(self, option: str) -> dict[str, Any]:
        """What becomes of `apr NAME OPTION`: code, out, err, and the modules it imported."""
        target, name = self.declaration.target, self.declaration.name
        ran: dict[str, Any] = self.kept(
            option, lambda: json.loads(run_fresh(RUN, target, name, option))
        )
        return ran

    def test_the_target_is_a_command(self) -> None:
        """The target is a click command or group."""
        import click

        found = self.load()
        assert isinstance(found, click.Command), (
            f"{self.declaration.target} is a {type(found).__name__}, expected a click.Command"
        )

    def test_help_is_there(self) -> None:
        """`--help` prints the declared summary and ends with 0."""
        ran = self.run("--help")
        assert ran["code"] == 0, f"--help ends with {ran['code']}: {ran['err'].strip()[-200:]}"
        summary = self.declaration.summary
        assert _words(summary) in _words(ran["out"]), (
            f"--help does not say {summary!r}, which `apr --help` shows for this command"
        )

    def test_help_is_light(self) -> None:
        """`--help` imports no array, device or tokenizer library."""
        heavy = [name for name in HEAVY if name in self.run("--help")["modules"]]
        assert not heavy, (
            f"--help imports {', '.join(heavy)}: import it inside the command's function"
        )

    def test_a_wrong_option_is_a_usage_error(self) -> None:
        """An option that does not exist ends with 2 and a message that names it."""
        ran = self.run(WRONG_OPTION)
        assert ran["code"] == USAGE, f"a wrong option ends with {ran['code']}, expected {USAGE}"
        assert WRONG_OPTION in ran["err"], f"the message is {ran['err'].strip()[-200:]!r}"

    def test_the_name_can_be_typed_and_is_not_taken(self) -> None:
        """The name is a lower-case word and not that of a built-in command."""
        from apr_core.cli import COMMANDS

        name = self.declaration.name
        assert NAME.fullmatch(name), f"{name!r} is no name of a command: use a-z, 0-9 and -"
        taken = name in COMMANDS and not self.declaration.group
        assert not taken, f"`apr {name}` is built in: this command would never run"


def _words(text: str) -> str:
    """Text without what wrapping, capitals and full stops change."""
    return " ".join(re.findall(r"[\w'-]+", text.lower()))
