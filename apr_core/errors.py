"""Every error apr shows a person, with the exit code it ends the process with.

A message names the thing, what was expected and what was found; the hint says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AprError(Exception):
    """Root of all errors meant for a person. `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(AprError):
    """Wrong arguments or options."""

    exit_code = 2


class PromptTooLong(UsageError):
    """A prompt of `tokens` tokens, too long for a context of `context` tokens."""

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"the prompt has {tokens} tokens, the context holds {context}", "Shorten the prompt."
        )
        self.tokens, self.context = tokens, context


class ConfigError(UsageError):
    """The user's configuration file holds something it should not."""


class NotFound(AprError):
    """A file, model, tensor or name that does not exist."""

    exit_code = 3


class PluginError(AprError):
    """A plugin that is missing, broken or ambiguous."""

    exit_code = 3


class PluginNotFound(PluginError):
    """No installed and enabled plugin provides the name."""


class PluginBroken(PluginError):
    """A plugin provides the name but cannot be loaded."""


class PluginConflict(PluginError):
    """Several plugins provide the name and nothing says which one is meant."""


class FormatError(AprError):
    """A file or data whose bytes break its format."""

    exit_code = 4


class ContractError(FormatError):
    """Tensors or configuration that a family's contract refuses."""


class QuantizationError(FormatError):
    """Values that a number format cannot hold."""


class ValidationFailed(AprError):
    """The checks ran and the file failed them."""

    exit_code = 5


class InputOutputError(AprError):
    """A failure of disk, permissions or network."""

    exit_code = 7


class BackendError(AprError):
    """A device or kernel cannot do what was asked."""

    exit_code = 14


class BackendUnavailable(BackendError):
    """The backend is installed but cannot run on this machine."""


@contextmanager
def reading(path: Path, missing: str = "") -> Iterator[None]:
    """Raise faults of a file that is read inside as NotFound, with the hint `missing`, and others.

    These are FormatError for what is not UTF-8, and InputOutputError.
    """
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file", missing) from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8: {error}") from None
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from error
