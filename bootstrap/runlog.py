"""Run directories: records to JSON lines and back, and `load_runs` for notebooks. No torch.

    results/<run>/pair.json                       everything about the pair
    results/<run>/seed-<k>/ideal.jsonl            one row per evaluation
    results/<run>/seed-<k>/real-n<N>.jsonl
    results/<run>/seed-<k>/<world>-every-step.jsonl
    results/<run>/seed-<k>/<world>-test.npz       on request: scores per test image
    results/<run>/seed-<k>/kept/<world>-<step>.safetensors   on request: weights on the way
    results/<run>/seed-<k>/<world>.done.json      published last: rows, sha256 of the final weights
    results/<run>/summary.json curves.csv curves.png curves.svg

results/FORMAT.md describes them for users.
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from bootstrap.errors import DataError
from bootstrap.files import replace, storing
from bootstrap.image_results import ImageResults, read_results, results_path
from bootstrap.pairing import failure, first_disagreement
from bootstrap.records import NO_IDS, SCHEMA, Record, Scores, StepRecord, hash_ids

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)

IDEAL = "ideal"
METRICS = ("error", "soft_error", "loss")


def real_name(n_samples: int) -> str:
    """The file stem of the real world with N samples."""
    return f"real-n{n_samples}"


def kept_path(folder: Path, world: str, step: int) -> Path:
    """Where a seed's folder holds the weights that a world had after `step` updates."""
    return folder / "kept" / f"{world}-{step}.safetensors"


def kept_steps(folder: Path, world: str) -> dict[int, Path]:
    """A world's own kept checkpoints in a seed's folder, by step."""
    paths = (folder / "kept").glob(f"{world}-*.safetensors")
    found = {path.stem.removeprefix(f"{world}-"): path for path in paths}
    return {int(step): found[step] for step in sorted(filter(str.isdigit, found), key=int)}


class RowWriter:
    """Appends rows to a JSON-lines file; `sync` makes them durable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storing(path, io.DEFAULT_BUFFER_SIZE):
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(path)  # or the next row would be glued to it
            self._file = path.open("ab")
        self._is_new = self._file.tell() == 0

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; the first of a file carries the schema number."""
        if self._is_new:
            row, self._is_new = {"schema": SCHEMA, **row}, False
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with storing(self.path, len(line)):
            self._file.write(line)

    def sync(self) -> None:
        """Flush to disk; StorageError if that fails."""
        with storing(self.path, io.DEFAULT_BUFFER_SIZE):
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with storing(self.path, io.DEFAULT_BUFFER_SIZE), self._file:  # closed whatever happens
            self.sync()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a torn last line is left out with a warning.

    Any other bad line, and a schema newer than this program's, is a DataError.
    """
    whole, torn = _read_lines(path)
    if torn:
        log.warning("%s: the last line is torn and is left out", path)
    rows = [_parse(line, path, number) for number, line in enumerate(whole, start=1)]
    if rows and rows[0].get("schema", SCHEMA) > SCHEMA:
        found = rows[0]["schema"]
        raise DataError(f"{path}:1: schema {found} is newer than {SCHEMA}; update the program")
    return rows


def truncate_rows(path: Path, step: int) -> None:
    """Keep the rows before `step`; later ones are added to `<file>.orphan`. No file, no change."""
    if not path.exists():
        return
    whole, torn = _read_lines(path)
    kept, orphans = _split_at(whole, path, step)
    if orphans:
        orphan = path.with_name(path.name + ".orphan")
        before = orphan.read_bytes() if orphan.exists() else b""
        replace(orphan, before + b"".join(orphans))
    if orphans or torn:
        replace(path, b"".join(kept))


def _read_lines(path: Path) -> tuple[list[bytes], bytes]:
    """The whole lines of a file with their newlines, and what a killed writer left after them."""
    lines = path.read_bytes().split(b"\n")
    return [line + b"\n" for line in lines[:-1]], lines[-1]


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: not a JSON row ({error})") from error
    if not (isinstance(row, dict) and isinstance(row.get("step"), int)):
        raise DataError(f"{path}:{number}: not a record, which is an object with an integer `step`")
    return row


def _split_at(lines: list[bytes], path: Path, step: int) -> tuple[list[bytes], list[bytes]]:
    """The lines of the records before `step`, and the others."""
    kept: list[bytes] = []
    others: list[bytes] = []
    for number, line in enumerate(lines, start=1):
        (kept if _parse(line, path, number)["step"] < step else others).append(line)
    return kept, others


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        whole, torn = _read_lines(path)
        if torn:
            log.warning("%s: the last line is torn and is removed", path)
            replace(path, b"".join(whole))


@dataclass(frozen=True)
class Curves:
    """The records of one world over seeds.

    A column is float64 (n_seeds, n_steps), NaN where a record or its key is missing. Columns are
    attributes named as the record keys: `curves.test_error`, `curves.lr`, ...
    """

    steps: Int[np.ndarray, " n_steps"]
    columns: dict[str, Float[np.ndarray, "n_seeds n_steps"]]
    identity: dict[str, Any] = field(default_factory=dict)  # of the run they come from, and seeds

    def __getattr__(self, name: str) -> Float[np.ndarray, "n_seeds n_steps"]:
        if name.startswith("__") or name == "columns":
            raise AttributeError(name)
        try:
            return self.columns[name]
        except KeyError:
            raise AttributeError(f"no column {name!r}; there are {sorted(self.columns)}") from None


def build_curves(rows_by_seed: Sequence[list[dict[str, Any]]]) -> Curves:
    """Stack the rows of several seeds on the union of their steps."""
    steps = np.array(sorted({row["step"] for rows in rows_by_seed for row in rows}), dtype=np.int64)
    at = {int(step): column for column, step in enumerate(steps)}
    columns: dict[str, np.ndarray] = {}
    for seed, rows in enumerate(rows_by_seed):
        for row in rows:
            for key, value in flatten(row).items():
                if key == "step" or not isinstance(value, (int, float)):
                    continue
                if key not in columns:
                    columns[key] = np.full((len(rows_by_seed), len(steps)), np.nan)
                columns[key][seed, at[row["step"]]] = value
    return Curves(steps=steps, columns=columns)


def flatten(row: dict[str, Any]) -> dict[str, Any]:
    """A row as columns: what is under `extra` gets the prefix `extra.`; the schema is left out."""
    flat = {key: value for key, value in row.items() if key not in ("schema", "extra")}
    return flat | {f"extra.{key}": value for key, value in row.get("extra", {}).items()}


@dataclass(frozen=True)
class Run:
    """One pair on disk, maybe unfinished: `run.ideal.test_error`, `run.real[5000].train_error`."""

    path: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.path.name

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that have a file of records."""
        folders = [folder for folder in self.path.glob("seed-*") if folder.name[5:].isdigit()]
        return tuple(sorted(int(f.name[5:]) for f in folders if any(f.glob("*.jsonl"))))

    @cached_property
    def n_samples(self) -> tuple[int, ...]:
        """The N of every real world that has a file of records."""
        stems = {p.stem for seed in self.seeds for p in self._folder(seed).glob("real-n*.jsonl")}
        return tuple(sorted(int(stem[6:]) for stem in stems if stem[6:].isdigit()))

    @property
    def worlds(self) -> tuple[str, ...]:
        """File stems of the worlds, the ideal one first."""
        return (IDEAL, *(real_name(n) for n in self.n_samples))

    @property
    def status(self) -> str:
        """complete (every world of every seed is done) | partial | failed, from what is on disk."""
        seeds = {*self.seeds, *self.config.get("seeds", ())}  # what was asked for counts too
        stems = {*self.worlds, *(real_name(n) for n in self.config.get("n_samples", ()))}
        folders = [self._folder(seed) for seed in seeds]
        if any(any(folder.glob("*.failed.json")) for folder in folders):
            return "failed"
        marks = [folder / f"{stem}.done.json" for folder in folders for stem in stems]
        return "complete" if marks and all(mark.exists() for mark in marks) else "partial"

    @property
    def steps(self) -> Int[np.ndarray, " n_steps"]:
        """Steps at which the ideal world was evaluated."""
        return self.ideal.steps

    @cached_property
    def ideal(self) -> Curves:
        """The ideal world's records."""
        return self.curves(IDEAL)

    @cached_property
    def real(self) -> dict[int, Curves]:
        """The real worlds' records by N."""
        return {n: self.curves(real_name(n)) for n in self.n_samples}

    @cached_property
    def failed(self) -> dict[tuple[int, int], str]:
        """By seed and N: which world stopped on a number that is not finite, so there is no gap."""
        pairs = [(seed, n) for seed in self.seeds for n in self.n_samples]
        found = {(s, n): failure(self._folder(s), real_name(n)) for s, n in pairs}
        return {pair: why for pair, why in found.items() if why}

    @cached_property
    def unpaired(self) -> dict[tuple[int, int], str]:
        """By seed and N: what shows that the two worlds are no pair, so there is no gap."""
        found = {}
        for seed in self.seeds:
            ideal = self.rows(seed, IDEAL)
            for n in self.n_samples:
                real = self.rows(seed, real_name(n))
                if why := first_disagreement(real, ideal, self.config, n):
                    found[seed, n] = f"no pair: {why}"
        return found

    @property
    def refused(self) -> dict[tuple[int, int], str]:
        """By seed and N: why there is no gap although there are records."""
        return self.unpaired | self.failed

    def curves(self, stem: str) -> Curves:
        """Records of the file `<stem>.jsonl` over seeds, e.g. `ideal-every-step`."""
        identity = {**(self.config.get("identity") or {}), "seeds": list(self.seeds)}
        curves = build_curves([self.rows(seed, stem) for seed in self.seeds])
        return with_fields(curves, identity=identity)

    def rows(self, seed: int, stem: str) -> list[dict[str, Any]]:
        """Rows of one seed's file; none if the file is missing."""
        path = self._folder(seed) / f"{stem}.jsonl"
        return read_rows(path) if path.exists() else []

    def test_results(self, seed: int, world: str) -> ImageResults:
        """Scores per test image of a world, e.g. `real-n5000`; read when asked for.

        DataError if the run was begun without `--save-test-results`.
        """
        return read_results(results_path(self._folder(seed), world))

    def kept(self, seed: int, world: str) -> dict[int, Path]:
        """The kept checkpoints of a world by step; `bootstrap.load_kept` reads one.

        Those of a real world up to its first reuse are the ideal world's, which it then was.
        """
        n = world.removeprefix("real-n")
        batch_size = self.config.get("recipe", {}).get("batch_size")
        reuse_step = int(n) // batch_size if n.isdigit() and batch_size else -1
        shared = kept_steps(self._folder(seed), IDEAL).items()
        own = kept_steps(self._folder(seed), world)
        return dict(sorted(({k: v for k, v in shared if k <= reuse_step} | own).items()))

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row per (run, seed, world, n_samples, step); needs pandas."""
        import pandas

        rows = []
        for seed in self.seeds:
            for n in (None, *self.n_samples):
                world, stem = (IDEAL, IDEAL) if n is None else ("real", real_name(n))
                key = {"run": self.name, "seed": seed, "world": world, "n_samples": n}
                rows += [key | flatten(row) for row in self.rows(seed, stem)]
        columns = None if rows else ["run", "seed", "world", "n_samples", "step"]
        return pandas.DataFrame(rows, columns=columns).astype({"n_samples": "Int64"})

    def _folder(self, seed: int) -> Path:
        return self.path / f"seed-{seed}"


def load_run(path: Path | str) -> Run:
    """The run in folder `path`; DataError if it is not one."""
    path = Path(path)
    try:
        return Run(path=path, config=json.loads((path / "pair.json").read_bytes()))
    except FileNotFoundError:
        remedy = "runs are made by `make compare`"
        raise DataError(f"{path}: no pair.json, so this is not a run; {remedy}") from None
    except ValueError as error:
        raise DataError(f"{path}/pair.json: not JSON ({error})") from error


def load_runs(root: Path | str) -> list[Run]:
    """Every run under `root`, at any depth, unfinished ones too, in the order of their paths."""
    return [load_run(path.parent) for path in sorted(Path(root).rglob("pair.json"))]


class RunWriter:
    """Writes one world's records, also those of a training loop of your own.

    >>> with RunWriter("results", run="mine", seed=0, world="real", n_samples=5000) as writer:
    ...     writer.note(batch.ids)  # every batch
    ...     writer.write_scores(step, test=scores, train=train_scores)  # now and then
    ...     writer.finish()  # at the end: nothing follows
    """

    def __init__(
        self, out: Path | str, run: str, seed: int, world: str, n_samples: int | None = None
    ) -> None:
        if world not in (IDEAL, "real") or (world == "real") != (n_samples is not None):
            given = f"world={world!r}, n_samples={n_samples}"
            raise ValueError(f"{given}: world is 'ideal', or 'real' with n_samples")
        folder = Path(out) / run
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "pair.json").exists():
            config = {"schema": SCHEMA, "run": run}
            replace(folder / "pair.json", json.dumps(config).encode() + b"\n")
        stem = IDEAL if n_samples is None else real_name(n_samples)
        self._mark = folder / f"seed-{seed}" / f"{stem}.done.json"
        self._rows = RowWriter(folder / f"seed-{seed}" / f"{stem}.jsonl")
        self._steps = RowWriter(folder / f"seed-{seed}" / f"{stem}-every-step.jsonl")
        self._started, self._ids_hash = time.perf_counter(), NO_IDS
        self._n_noted, self._seen = 0, set[int]()

    def write(self, record: Record | StepRecord) -> None:
        """Append a record to the file that is for its kind."""
        (self._steps if isinstance(record, StepRecord) else self._rows).write(record.to_json())

    def note(self, ids: Int[np.ndarray, " n"]) -> None:
        """Count the samples of a training batch, by their ids."""
        self._ids_hash = hash_ids(self._ids_hash, ids)
        self._n_noted += len(ids)
        self._seen.update(ids.tolist())

    def write_scores(
        self, step: int, *, test: Scores, train: Scores | None = None, lr: float = 0.0
    ) -> None:
        """Append an evaluation after `step` updates, with what was noted of the samples so far."""
        self.write(
            Record(
                step=step,
                samples_seen=self._n_noted,
                unique_samples_seen=len(self._seen),
                ids_hash=self._ids_hash,
                lr=lr,
                test=test,
                train=train,
                wall_s=time.perf_counter() - self._started,
            )
        )

    def finish(self) -> None:
        """Mark the world as done: every record is on disk and none follows."""
        self.sync()
        mark = {"weights_sha256": None, "n_rows": len(read_rows(self._rows.path))}
        replace(self._mark, json.dumps(mark).encode() + b"\n")

    def sync(self) -> None:
        """Make everything written so far durable."""
        self._rows.sync()
        self._steps.sync()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._rows.__exit__(*error)
        self._steps.__exit__(*error)
