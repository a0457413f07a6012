"""The `apr` command: a table of subcommands, imported when used, and errors rendered once."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apr_core import __version__
from apr_core.errors import AprError, PluginNotFound

if TYPE_CHECKING:
    from apr_core.registry import Registry

Table = dict[str, tuple[str, str]]  # name: ("module:Attr", one line of help)
COMMANDS: Table = {
    "import": ("apr_core.cli.import_:command", "Turn a checkpoint into a quantized .apr file."),
    "validate": ("apr_core.cli.validate:command", "Check an .apr file, and its quality."),
    "tensors": ("apr_core.cli.tensors:command", "List the tensors of an .apr file."),
    "inspect": ("apr_core.cli.inspect:command", "Show what an .apr file says about itself."),
    "export": ("apr_core.cli.export:command", "Write an .apr file in another format."),
    "run": ("apr_core.cli.generation:command", "Answer a prompt."),
    "chat": ("apr_core.cli.chat:command", "Chat interactively."),
    "list": ("apr_core.cli.store:list_command", "List the models in the store."),
    "rm": ("apr_core.cli.store:rm_command", "Remove models from the store."),
    "plugins": ("apr_core.cli.plugins:command", "List, check, enable, disable and create plugins."),
}
INTERRUPTED, TERMINATED, IO_ERROR = 130, 143, 7


class Terminated(BaseException):
    """SIGTERM as an exception, so that half-written files are removed on the way out."""


class LazyGroup(click.Group):
    """Imports the module of the one subcommand that runs. Plugins may add commands."""

    def __init__(self, *args: Any, table: Table, group: str = "", **options: Any) -> None:
        """Take the core's own subcommands (`table`) and the `group` of plugins' commands to add."""
        super().__init__(*args, **options)
        self.table, self.path = table, group

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the core's commands, then those of plugins."""
        return [*self.table, *sorted(self._of_plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's target; `distribution:name` always works."""
        if cmd_name in self.table:
            module, _, attribute = self.table[cmd_name][0].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        if ":" in cmd_name or cmd_name in self._of_plugins():
            registry = _registry()
            loaded: click.Command = registry.load(registry.get("command", cmd_name))
            return loaded
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one help line per command, without importing any of them."""
        rows = [(name, help_) for name, (_, help_) in self.table.items()]
        rows += sorted(self._of_plugins().items())
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Resolve a command; an unknown one raises with its package, or names that come close."""
        name = args[0]
        known = name in self.table or ":" in name  # then no plugin is asked
        if not known and name not in self._of_plugins():
            from apr_core.messages import did_you_mean, published

            words = f"{self.path} {name}".strip()
            if package := published("command").get(words):
                raise PluginNotFound(
                    f"`apr {words}` is a command of {package}, which is not installed or not in "
                    "use",
                    f"pip install {package}",
                )
            if question := did_you_mean(name, self.list_commands(ctx)):
                ctx.fail(f"No such command {name!r}. {question}")
        return super().resolve_command(ctx, args)

    def _of_plugins(self) -> dict[str, str]:
        """Return {name: summary} of plugins' commands; they cannot replace the core's."""
        declared = [owned.declaration for owned in _registry().declarations("command")]
        ours = [d for d in declared if d.group == self.path and d.name not in self.table]
        return {d.name: d.summary for d in ours}


def model_file(name: str) -> Path:
    """Return the .apr file that a command's FILE means, imported if need be: see `find_model`."""
    path = Path(name)
    if path.suffix == ".apr" and path.is_file():  # then nothing more is loaded
        return path
    from apr_core.cli.store import stored

    return stored(name)


def _registry() -> Registry:
    from apr_core.registry import tolerant_registry

    return tolerant_registry()


def _no_plugins(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ["APR_NO_PLUGINS"] = "1"


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--no-plugins",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_no_plugins,
    help="Use no plugins at all.",
)
@click.version_option(
    __version__, "-V", "--version", prog_name="apr", message="%(prog)s %(version)s"
)
def apr() -> None:
    """From a checkpoint to a quantized, validated, running model."""


def main() -> None:
    """Run the `apr` script."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.exit(run(sys.argv[1:]))


def _on_sigterm(number: int, frame: Any) -> None:
    raise Terminated


def run(args: list[str]) -> int:
    """Run a command line and return its exit code; errors go to stderr as `error:`, `hint:`."""
    if args[:1] == ["help"]:
        args = [*args[1:], "--help"]
    try:
        result = apr.main(args=args, prog_name="apr", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort) as error:
        what = error.__cause__ if isinstance(error, click.Abort) else error  # click wraps it
        click.echo(f"interrupted {what or ''}".rstrip(), err=True)
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    except BrokenPipeError:  # the reader of stdout is no more: the last flush may go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
            "This is a bug in apr. Set APR_DEBUG=1 to see where it happened.",
            1,
        )


def _show(message: str, hint: str, code: int) -> int:
    if os.environ.get("APR_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    from apr_core.cli.console import with_options

    error = click.style("error:", fg="red", bold=True)
    click.echo(f"{error} {with_options(message)}", err=True)
    for line in with_options(hint).splitlines():
        click.echo(f"{click.style('hint:', fg='cyan')} {line}", err=True)
    return code
