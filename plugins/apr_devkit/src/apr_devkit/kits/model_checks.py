"""Checks of a backend with whole models: every installed family's tiny one, and what steps do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import AprError, BackendError
from apr_core.model.model import Model, load
from apr_core.model.state import KVType
from apr_devkit.kits.case_runs import difference, differences
from apr_devkit.kits.cases import KV, Call, flat
from apr_devkit.kits.checks import skip
from apr_devkit.kits.core_cases import KV_TYPES, attention_cases
from apr_devkit.kits.op_checks import DeviceComparison, no
from apr_devkit.kits.reference_backend import NAME as REFERENCE
from apr_devkit.kits.reference_backend import with_reference
from apr_devkit.kits.tiny import tiny_apr

Logits = list[NDArray[np.float32]]
EXACT, ROUNDED = 1e-7, 3e-2  # NMSE of logits, with dense and with packed weights
DEEP = 0.1  # what a gain may differ from 1: rounding in many layers is no longer mere noise
PROMPT, ROOM = 70, 250  # tokens; the second is just below where a cache grows


class ModelChecks(DeviceComparison):
    """The checks themselves."""

    def families(self, recipe: str = "f32") -> Iterator[tuple[str, Path]]:
        """(name, tiny model) of every family that has one. Skips at the end if some have none."""
        left_out, count, _ = [], 0, self.device  # no family matters if there is no device
        for owned in self.registry.declarations("family"):
            name = owned.declaration.name
            try:
                path = self.kept(f"tiny {name} {recipe}", partial(self._tiny, name, recipe))
            except AprError as error:
                left_out.append(f"{name}: {error.message}")
                continue
            count += 1
            yield name, path
        if left_out or not count:
            skip("; ".join(left_out) or "no family is installed")

    def _tiny(self, family: str, recipe: str) -> Path:
        folder = self.folder() / f"{family}-{recipe}"
        folder.mkdir(exist_ok=True)
        return tiny_apr(family, folder, recipe, registry=self.registry)

    def open(self, path: Path, backend: str = "", **options: Any) -> Model:
        """A model on this backend, or on the references."""
        registry = with_reference(self.registry)
        return load(path, backend or self.name, registry=registry, **options)

    def test_every_family_runs(self) -> None:
        """Every installed family's logits are those of the references on NumPy."""
        for family, path in self.families():
            no([f"{family}: {c}" for c in self._compared(path, EXACT)])

    def test_every_family_runs_packed(self) -> None:
        """The same with packed weights, as far as its kernels read them."""
        recipe = self._packed_recipe()
        for family, path in self.families(recipe):
            no([f"{family}, {recipe}: {c}" for c in self._compared(path, ROUNDED)])

    def _packed_recipe(self) -> str:
        """A recipe whose formats the kernel table reads."""
        kernels = self.device.kernels
        found: list[str] = [
            owned.declaration.name for owned in self.registry.declarations("recipe")
            if any(("linear", format) in kernels for format in owned.declaration.formats)
        ]  # fmt: skip
        return found[0] if found else skip("its kernel table reads no format of any recipe")

    def logits(self, path: Path) -> Logits:
        """What this backend makes of a tiny model: run once, for all checks that compare."""
        logits, _ = self._run(path)
        return logits

    def _run(self, path: Path) -> tuple[Logits, int]:
        def run() -> tuple[Logits, int]:
            with self.open(path) as model:
                return run_model(model), model.state_bytes()

        found: tuple[Logits, int] = self.kept(f"logits of {path}", run)
        return found

    def _compared(self, path: Path, tolerance: float) -> list[str]:
        logits, state = self._run(path)
        with self.open(path) as model, self.open(path, REFERENCE, kv_type=model.kv_type) as other:
            pairs = zip(logits, run_model(other), strict=True)
            found = [(i, difference(a, b, tolerance, DEEP)) for i, (a, b) in enumerate(pairs, 1)]
        return [f"logits of step {i} differ: {c}" for i, c in found if c] + (
            [f"{state} bytes of state are held after all slots were freed"] if state else []
        )

    def test_captured_steps_are_the_same_bits(self) -> None:
        """A captured step gives the very logits of one that is not."""
        if not self.device.has("capture"):
            skip("it has no capture()")
        obstacles: list[str] = []
        for family, path in self.families():
            with self.open(path) as plain:
                if plain.report.unrecorded:
                    obstacles.append(f"{family}: {plain.report.unrecorded[0]}")
                    continue
                plain.captures = False
                pairs = zip(self.logits(path), run_model(plain), strict=True)
                for i, (a, b) in enumerate(pairs, 1):
                    assert a.tobytes() == b.tobytes(), f"{family}: step {i} differs if captured"
        if obstacles:
            skip(f"steps are not recorded: {'; '.join(obstacles)}")

    def test_kv_types_work(self) -> None:
        """Attention and models work with every precision of keys and values it claims."""
        for kv_type in self.kv_types():
            problems = []
            for case in attention_cases(kv_type):
                calls = _in_f32(case.calls()) if kv_type == "q8" else None
                expected = self.references.run(case, calls)
                found = self.runner.run(case)
                problems += [f"{case}: {c}" for c in differences(found, expected, case.tolerance)]
            no(problems)

    def kv_types(self) -> tuple[KVType, ...]:
        """What it claims, f32 and f16 where it says nothing."""
        claimed: tuple[KVType, ...] = self.device.kv_types
        unknown = sorted(set(claimed) - set(KV_TYPES))
        assert not unknown, f"kv_types has {unknown}, known are {', '.join(KV_TYPES)}"
        assert "f32" in claimed, "kv_types must have f32"
        return claimed

    def test_models_load_with_every_kv_type(self) -> None:
        """Models run with every precision of keys and values it claims, near to f32."""
        for family, path in self.families():
            expected = self.logits(path)  # weights of f32 have a cache of f32
            for kv_type in [each for each in self.kv_types() if each != "f32"]:
                try:
                    with self.open(path, kv_type=kv_type) as model:
                        found = run_model(model)
                except BackendError as error:
                    if "q8" in error.message:  # head sizes it does not fit, layers that refuse it
                        continue
                    raise
                for i, (a, b) in enumerate(zip(found, expected, strict=True), 1):
                    complaint = difference(a, b, ROUNDED, DEEP)
                    assert not complaint, f"{family}, {kv_type}: logits of step {i} {complaint}"


def run_model(model: Model) -> Logits:
    """Logits of a prompt, of decoding over a growing cache, and of two sequences together."""
    rng = np.random.default_rng(5)
    ids = [int(i) for i in rng.integers(0, model.config.vocab_size, ROOM + 20)]
    found: Logits = [model.logits(ids[:PROMPT], chunk=64)]
    first = model.new_slot()
    for start in range(0, ROOM, 128):
        found.append(model.forward([(first, ids[start : min(start + 128, ROOM)])]))
    found += [model.forward([(first, [i])]) for i in ids[ROOM : ROOM + 8]]
    second = model.new_slot()
    found.append(model.forward([(first, ids[:1]), (second, ids[:5])]))
    found += [model.forward([(first, [i]), (second, [i])]) for i in ids[:3]]
    model.free_slot(first)
    found.append(model.forward([(second, ids[:1])]))
    model.free_slot(second)
    return found


def _in_f32(calls: list[Call]) -> list[Call]:
    """The same calls with caches in f32: the references read no bytes."""
    caches = {id(a): replace(a, dtype="f32") for a in flat(calls) if isinstance(a, KV)}
    return [tuple(caches.get(id(a), a) for a in call) for call in calls]
