"""What a check finds: problems, each with where, why and what to do, and a report of them all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bootstrap.duplicates import NearDuplicate, count_by_split
from bootstrap.errors import DataError

N_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, where, why, and what to do about it."""

    what: str
    file: str
    row: int | None = None
    why: str
    remedy: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{where}: {self.what} ({self.why}); {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found; `removed` names the files that repair deleted.

    `near_duplicates` is None if they were not looked for.
    """

    folder: Path
    n_shards: int = 0
    n_samples: dict[str, int]  # per split, or per record file of a run
    problems: tuple[Problem, ...]
    removed: tuple[str, ...] = ()
    near_duplicates: tuple[NearDuplicate, ...] | None = None

    def describe(self) -> str:
        """What was looked at and how it came out, for people; problems are not listed."""
        counts = ", ".join(f"{name} {n:,}" for name, n in self.n_samples.items() if n) or "nothing"
        state = f"{len(self.problems)} problems" if self.problems else "valid"
        lines = [f"{self.folder}: {state}: {counts}"]
        if self.removed:
            lines.append(f"removed {', '.join(self.removed)}")
        if self.near_duplicates is not None:
            where = count_by_split(self.near_duplicates) or "none"
            lines.append(f"near-duplicates (least bit or mirrored): {where}")
            lines += [f"  {pair}" for pair in self.near_duplicates[:N_SHOWN]]
        return "\n".join(lines)

    def raise_if_bad(self) -> None:
        """DataError that shows the first problems, if there are any."""
        if not self.problems:
            return
        lines = [str(problem) for problem in self.problems[:N_SHOWN]]
        if len(self.problems) > N_SHOWN:
            lines.append(f"and {len(self.problems) - N_SHOWN} more")
        raise DataError(f"{self.folder}: {len(self.problems)} problems\n  " + "\n  ".join(lines))
