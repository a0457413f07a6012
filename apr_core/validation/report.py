"""Results of validation: checks that passed, failed or did not run, and their score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "not_run"]
SHOWN = 5  # problems a detail lists; the rest is counted


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `detail` says what was checked, what is wrong, or why it did not run."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class TensorError:
    """Quantization error of one tensor against its source.

    `relative_rmse` is |decoded - source| / |source| in the Euclidean norm; `snr_db` is
    -20 log10 of it, None if nothing was lost. `limit` is the largest error that passes.
    """

    name: str
    format: str
    relative_rmse: float
    snr_db: float | None
    limit: float


@dataclass(slots=True)
class Report:
    """The checks of one file, in the order they ran.

    `overall_error` is the relative RMSE of all tensors together, by their number of values.
    """

    file: str
    checks: list[Check] = field(default_factory=list)
    tensors: list[TensorError] | None = None  # None: quality was not asked for
    overall_error: float | None = None

    def passed(self, name: str, detail: str) -> None:
        """Add a check that ran and found nothing wrong."""
        self.checks.append(Check(name, "passed", detail))

    def failed(self, name: str, detail: str) -> None:
        """Add a check that ran and found something wrong."""
        self.checks.append(Check(name, "failed", detail))

    def not_run(self, name: str, reason: str) -> None:
        """Add a check that could not run."""
        self.checks.append(Check(name, "not_run", reason))

    def judge(self, name: str, problems: Sequence[str], detail: str, unseen: str = "") -> None:
        """Add a check that passes without problems, unless `unseen` says what was not looked at."""
        if problems:
            self.failed(name, listed(problems))
        elif unseen:
            self.not_run(name, unseen)
        else:
            self.passed(name, detail)

    def count(self, status: Status) -> int:
        """Return the number of checks with this status."""
        return sum(check.status == status for check in self.checks)

    @property
    def ran(self) -> int:
        """Number of checks that ran."""
        return len(self.checks) - self.count("not_run")

    @property
    def valid(self) -> bool:
        """True if no check failed, which says nothing about checks that did not run."""
        return not self.count("failed")

    @property
    def score(self) -> float | None:
        """Score from 0 to 100, None without quality: see `score`."""
        if self.tensors is None or not self.ran:
            return None
        return score(self.count("passed"), self.ran, self.overall_error)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as the JSON of `apr validate --json`."""
        report: dict[str, Any] = {
            "file": self.file, "valid": self.valid, "checks": [asdict(c) for c in self.checks],
            "score": self.score, "checks_run": self.ran, "checks_total": len(self.checks),
        }  # fmt: skip
        if self.tensors is not None:
            report["relative_rmse"] = self.overall_error
            report["tensors"] = [asdict(t) for t in self.tensors]
        return report


def score(passed: int, ran: int, overall_error: float | None) -> float:
    """Return 100 * (passed / ran) * fidelity, to one decimal.

    Checks that did not run are in neither `passed` nor `ran`. `fidelity` is max(0, 1 - 2 * e),
    where e is the root mean square of the tensors' relative errors, each counted by its number of
    values; without a source it is 1. A file with e = 0.075 (common for 4.5 bits) has 85.
    """
    fidelity = 1.0 if overall_error is None else max(0.0, 1.0 - 2.0 * overall_error)
    return round(100.0 * passed / ran * fidelity, 1)


def listed(problems: Sequence[str]) -> str:
    """Return the first few problems and how many more there are."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more
