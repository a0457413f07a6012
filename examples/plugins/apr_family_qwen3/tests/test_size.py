"""What the README promises."""

from importlib.resources import files


def test_the_package_has_at_most_150_lines():
    sources = [p for p in files("apr_family_qwen3").iterdir() if p.name.endswith((".py", ".yaml"))]
    lines = {p.name: p.read_text("utf-8").count("\n") for p in sources}
    assert {"hooks.py", "family.py", "mixer.py", "contract.yaml"} <= lines.keys()
    assert sum(lines.values()) <= 150, lines
    longest = max(len(line) for p in sources for line in p.read_text("utf-8").splitlines())
    assert longest <= 100
