"""How much memory there is for sequences: what a container or a unit of systemd leaves."""

from __future__ import annotations

import sys

import pytest

from apr_serve.engine.memory import _groups, available

VERSIONS = {
    2: ("0::", "", "memory.max", "memory.current", ""),
    1: ("7:cpu,memory:", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


class Groups:
    """Folders as the kernel shows them."""

    def __init__(self, folder, version):
        self.folder = folder
        self.line, base, self.limit, self.used, self.prefix = VERSIONS[version]
        self.base = folder / base

    def group(self, name, limit, used, file=0):
        place = self.base / name
        place.mkdir(parents=True, exist_ok=True)
        (place / self.limit).write_text(f"{limit}\n")
        (place / self.used).write_text(f"{used}\n")
        stat = {"anon": used, "active_file": file, "inactive_file": file}
        (place / "memory.stat").write_text(
            "".join(f"{self.prefix}{name} {value}\n" for name, value in stat.items())
        )

    def left(self, name):
        own = self.folder / "own"
        own.write_text(f"9:name=systemd:/x\n{self.line}/{name}\n")
        return min(_groups(own, self.folder))


@pytest.fixture(params=VERSIONS)
def groups(request, tmp_path):
    return Groups(tmp_path, request.param)


def test_the_limit_of_a_unit_counts(groups):
    groups.group("system.slice/apr.service", 1000, 300)
    assert groups.left("system.slice/apr.service") == 700


def test_the_narrowest_of_the_groups_around_counts(groups):
    groups.group("a", 500, 450)
    groups.group("a/b", 1000, 300)
    groups.group("a/b/c", "max", 10)
    assert groups.left("a/b/c") == 50


def test_pages_of_files_are_free_as_the_weights_are_counted_apart(groups):
    groups.group("a", 1000, 900, file=300)
    assert groups.left("a") == 700


def test_no_limit_and_no_groups(groups):
    assert groups.left("gone") == sys.maxsize
    assert min(_groups(groups.folder / "nothing", groups.folder)) == sys.maxsize
    assert 0 < available() < sys.maxsize
