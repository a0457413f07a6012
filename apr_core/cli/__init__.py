"""The `apr` command: a table of subcommands, imported when used, and errors rendered once."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any

import click

from apr_core.errors import AprError

COMMANDS: dict[str, tuple[str, str]] = {
    "pull": ("apr_core.cli.pull", "Download a checkpoint from a model hub."),
    "import": ("apr_core.cli.import_", "Turn a checkpoint into a quantized .apr file."),
    "validate": ("apr_core.cli.validate", "Check an .apr file, and its quality."),
    "tensors": ("apr_core.cli.tensors", "List the tensors of an .apr file."),
    "inspect": ("apr_core.cli.inspect", "Show what an .apr file says about itself."),
    "export": ("apr_core.cli.export", "Write an .apr file in another format."),
    "run": ("apr_core.cli.run", "Answer a prompt."),
    "bench": ("apr_core.cli.bench", "Measure how fast a file runs here."),
    "chat": ("apr_core.cli.chat", "Talk in turns."),
    "serve": ("apr_core.cli.serve", "Answer many clients over HTTP."),
    "demo": ("apr_core.cli.demo", "The whole pipeline on a small bundled model."),
    "plugins": ("apr_core.cli.plugins", "List, check, switch and begin plugins."),
    "doctor": ("apr_core.cli.doctor", "Look at everything apr depends on."),
}
INTERRUPTED, TERMINATED, IO_ERROR = 130, 143, 7


class Terminated(BaseException):
    """SIGTERM, as an exception, so that half-written files are removed on the way out."""


class LazyGroup(click.Group):
    """Imports the module of the one subcommand that runs. Plugins may add commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The built-in commands, then those of plugins."""
        return [*COMMANDS, *sorted(_plugin_commands())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module, or the plugin's target; `distribution:name` always works."""
        if cmd_name in COMMANDS:
            command: click.Command = import_module(COMMANDS[cmd_name][0]).command
            return command
        if ":" in cmd_name or cmd_name in _plugin_commands():
            from apr_core.registry import get_registry

            registry = get_registry()
            loaded: click.Command = registry.load(registry.get("command", cmd_name))
            return loaded
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line a command, without importing any of them."""
        rows = [(name, help_) for name, (_, help_) in COMMANDS.items()]
        rows += sorted(_plugin_commands().items())
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does, with a suggestion for a misspelt command."""
        if args[0] in COMMANDS or ":" in args[0]:  # nothing to suggest: no plugin is asked
            return super().resolve_command(ctx, args)
        import difflib

        close = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
        if close and args[0] not in self.list_commands(ctx):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)


def _plugin_commands() -> dict[str, str]:
    """{name: summary} of the commands that plugins add; those of core cannot be replaced."""
    from apr_core.registry import get_registry

    declared = [owned.declaration for owned in get_registry().declarations("command")]
    return {d.name: d.summary for d in declared if d.name not in COMMANDS}


def _no_plugins(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ["APR_NO_PLUGINS"] = "1"


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from apr_core import __version__

        click.echo(f"apr {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--no-plugins", is_flag=True, is_eager=True, expose_value=False, callback=_no_plugins,
    help="Use no plugins at all.",
)  # fmt: skip
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version)
def apr() -> None:
    """From a Hugging Face checkpoint to a quantized, validated, running model."""


def main() -> None:
    """Entry point of the `apr` script."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.exit(run(sys.argv[1:]))


def _on_sigterm(number: int, frame: Any) -> None:
    raise Terminated


def run(args: list[str]) -> int:
    """Run a command line and return its exit code; errors go to stderr as `error:`, `hint:`."""
    try:
        result = apr.main(args=args, prog_name="apr", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except AprError as error:
        return _show(error.message, error.hint, error.exit_code)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _show(f"{name}{error.strerror or error}", "", IO_ERROR)
    except MemoryError:
        return _show("out of memory", "Close other programs, or use a smaller model.", 1)
    except Exception as error:
        return _show(
            f"{type(error).__name__}: {error}",
            "This is a bug in apr. Set APR_DEBUG=1 to see where it happened.", 1,
        )  # fmt: skip


def _show(message: str, hint: str, code: int) -> int:
    if os.environ.get("APR_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    for line in hint.splitlines():
        click.echo(f"{click.style('hint:', fg='cyan')} {line}", err=True)
    return code


def _silence_stdout() -> None:
    """The reader has gone: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
