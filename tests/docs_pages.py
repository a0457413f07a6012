"""Fenced blocks of a Markdown page, and how they are run: what repository/test_docs.py does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
MARK = re.compile(r"<!-- (file|exit|not run): (.*?) -->\n+$")
NUMBER = re.compile(r"\d[\d,]*(\.\d+)?")
RUN = ("python", "sh", "console")
AT_HOME = "/home/you"  # what pages call the folder that is $HOME here
ONCE = "compiling kernels for this processor"  # said by whichever command is the first


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text, and the mark in the comment above it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    value: str = ""

    @property
    def where(self):
        return f"{self.page.name}:{self.line}"

    @property
    def is_run(self):
        return self.mark != "not run" and (self.language in RUN or self.mark == "file")


def blocks(page):
    """All fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        marked = MARK.search(before)
        mark, value = marked.groups() if marked else ("", "")
        yield Block(page, before.count("\n") + 1, match[1], match[2], mark, value)


class Reader:
    """Somebody who follows a page literally: one shell, one Python namespace."""

    def __init__(self, env, folder):
        self.state = folder / ".shell-state"
        self.home = env["HOME"]
        self.names = {"__name__": "__main__"}
        exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in env.items())
        self.state.write_text(f"{exports}cd {shlex.quote(str(folder))}\n")
        self.cwd = folder

    def go(self, folder):
        """Begin in another folder."""
        with self.state.open("a") as state:
            state.write(f"cd {shlex.quote(str(folder))}\n")
        self.cwd = folder

    def follow(self, block):
        """Do what a block says. Raises AssertionError, naming page and line."""
        if block.mark == "file":
            path = self.cwd / block.value
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        elif block.language == "python":
            with chdir(self.cwd):
                exec(compile(block.text, block.where, "exec"), self.names)
        elif block.language == "sh":
            self._run(block, block.text)
        else:
            self._follow_console(block)

    def _follow_console(self, block):
        steps = list(commands(block.text))
        for number, (command, shown) in enumerate(steps):
            wanted = int(block.value) if block.mark == "exit" and number == len(steps) - 1 else 0
            output = self._run(block, command, wanted)
            missing = first_missing(shown, output.replace(self.home, AT_HOME))
            assert missing is None, (
                f"{block.where}: `{command}` does not print {missing!r} where it is shown, but\n"
                f"{output}"
            )

    def _run(self, block, script, wanted=None):
        """Run lines in the page's shell; its folder and variables last from block to block."""
        if wanted is None:
            wanted = int(block.value) if block.mark == "exit" else 0
        state = shlex.quote(str(self.state))
        keep = f'{{ declare -px; printf "cd %q\\n" "$PWD"; }} > {state}'
        done = subprocess.run(
            ["bash", "--norc", "-c", f". {state}\ntrap 'code=$?; {keep}; exit $code' EXIT\n"
             f"set -e\n{script}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == wanted, (
            f"{block.where}: ends with {done.returncode}, not {wanted}:\n{script}\n{done.stdout}"
        )
        self.cwd = Path(shlex.split(self.state.read_text().rstrip().splitlines()[-1])[1])
        return done.stdout


def commands(text):
    """(command, lines shown below it) of a console block. `> ` continues a command."""
    command, shown = None, []
    for line in text.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command, shown
            command, shown = line[2:], []
        elif line.startswith("> ") and not shown:
            command += "\n" + line[2:]
        else:
            assert command is not None, f"output before any command: {line!r}"
            shown.append(line)
    if command is not None:
        yield command, shown


def first_missing(shown, output):
    """The first shown line that the output does not have in its place; None if all are there.

    Numbers may differ, and so may spaces. `...` stands for any lines, at a line's end for anything.
    """
    raw_lines = [line for line in output.splitlines() if line.strip() and not line.startswith(ONCE)]
    lines = [loose(line) for line in raw_lines]
    at, anywhere = 0, False
    for line in filter(str.strip, shown):
        if line.strip() == "...":
            anywhere = True
            continue
        wanted = loose(line)
        places = range(at, len(lines)) if anywhere else range(at, min(at + 1, len(lines)))
        place = next((i for i in places if fits(wanted, lines[i])), None)
        if place is None:
            return line
        at, anywhere = place + 1, False
    return None if anywhere or at == len(lines) or not shown else f"(nothing after {shown[-1]!r})"


def fits(wanted, line):
    return line.startswith(wanted[:-3].rstrip()) if wanted.endswith("...") else line == wanted


def loose(line):
    return NUMBER.sub("#", " ".join(line.split()))
