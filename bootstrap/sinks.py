"""Copies of the records for TensorBoard and Weights & Biases; the JSON lines stay the truth.

A sink is anything with `write(record)` and `close()`. A record is a row, flat: `step`, and numbers
by the names of results/FORMAT.md (`every_step/` before those of single steps). Whatever a sink
raises is warned of once and never reaches the run.
"""

from __future__ import annotations

import heapq
import importlib.util
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from bootstrap.errors import ConfigurationError
from bootstrap.runlog import Run, flatten, load_run

log = logging.getLogger(__name__)

EVERY_STEP = "-every-step"
TENSORBOARD, WANDB = "tensorboard", "wandb"  # the packages and the extras are called the same

SinkRecord = Mapping[str, float]


class Sink(Protocol):
    """Takes the records of one world and seed, in the order of their steps."""

    def write(self, record: SinkRecord) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


Opener = Callable[[Run, int, str], Sink]  # for a run, a seed and a world's file stem


class TensorBoardSink:
    """Scalars as TensorBoard event files in `folder`; its earlier ones are replaced.

    Events are written here and now, not by TensorBoard's own writing thread: when that dies of a
    full disk, whoever feeds it waits for ever. The time axis is `wall_s`, from 0.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        path = folder / f"events.out.tfevents.{time.time_ns()}.deep-bootstrap"
        self._records = RecordWriter(path.open("wb"))
        self._wall_s = 0.0
        self._append(self._event(file_version="brain.Event:2"))
        # a TensorBoard that shows the earlier files forgets what it has from them
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._append(self._event(step=0, session_log=start))

    def write(self, record: SinkRecord) -> None:
        """Append one event with a scalar per number."""
        self._wall_s = record.get("wall_s", self._wall_s)
        numbers = ((name, value) for name, value in record.items() if name != "step")
        value = [self._summary.Value(tag=name, simple_value=number) for name, number in numbers]
        summary = self._summary(value=value)
        self._append(self._event(wall_time=self._wall_s, step=int(record["step"]), summary=summary))
        if "wall_s" in record:  # an evaluation: show it now
            self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _append(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


class WandbSink:
    """A run on Weights & Biases for one world and seed, grouped by run; WANDB_MODE=offline works.

    Its id is made of the run's name, seed and world, so that the same command goes on with it.
    """

    def __init__(self, run: Run, seed: int, world: str) -> None:
        import wandb

        name = f"{run.name}-seed-{seed}-{world}"
        self._run = wandb.init(
            project="deep-bootstrap",
            group=run.name,
            name=name,
            id=name,
            resume="allow",
            reinit="create_new",  # worlds are fed at the same time
            dir=str(run.path),
            config={**run.config, "seed": seed, "world": world},
            settings=wandb.Settings(console="off", silent=True),
        )
        self._first = self._run.step  # 0, but in a run that goes on

    def write(self, record: SinkRecord) -> None:
        """Send one record, unless the run has that step from an earlier time."""
        numbers = {name: number for name, number in record.items() if name != "step"}
        if record["step"] >= self._first:
            self._run.log(numbers, step=int(record["step"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def open_tensorboard(run: Run, seed: int, world: str) -> Sink:
    """TensorBoard files in the run's own folder."""
    return TensorBoardSink(run.path / TENSORBOARD / f"seed-{seed}" / world)


OPENERS: dict[str, Opener] = {TENSORBOARD: open_tensorboard, WANDB: WandbSink}


def parse_sinks(text: str) -> dict[str, Opener]:
    """`tensorboard,wandb` -> what opens each; ConfigurationError if unknown or not installed."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in OPENERS:
            raise ConfigurationError(f"--sink {name!r}: use {' or '.join(OPENERS)}")
        check_installed(name, f"--sink {name}")
    return {name: OPENERS[name] for name in names}


def check_installed(package: str, option: str) -> None:
    """ConfigurationError with the command that installs a package that is not there."""
    if importlib.util.find_spec(package) is None:
        raise ConfigurationError(
            f"{option}: the package {package} is not installed;"
            f" pip install 'deep-bootstrap[{package}]'"
        )


class Sinks:
    """Feeds the records of a run's worlds to sinks; one that fails is left with a warning.

    A sink opens at a world's first row and is given what its files hold already, so it has the
    whole world, also if the run was stopped or started without it.
    """

    def __init__(self, folder: Path, openers: Mapping[str, Opener]) -> None:
        self._folder = folder
        self._openers = dict(openers)
        self._open: dict[str, dict[tuple[int, str], Sink]] = {name: {} for name in openers}

    def on_row(self, seed: int, stem: str, row: dict[str, Any]) -> None:
        """Pass a row on, before it is written to the file `<stem>.jsonl` of the seed."""
        world = stem.removesuffix(EVERY_STEP)
        for name in tuple(self._openers):
            try:
                if (seed, world) not in self._open[name]:
                    self._start(name, seed, world)
                self._open[name][seed, world].write(flat_record(stem, row))
            except Exception as error:  # whatever it is, it is not worth a run
                self._leave(name, error)

    def close(self) -> None:
        """Close every sink."""
        for name in tuple(self._openers):
            try:
                for sink in self._open[name].values():
                    sink.close()
            except Exception as error:
                self._leave(name, error)
        self._openers.clear()

    def __enter__(self) -> Sinks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, name: str, seed: int, world: str) -> None:
        for key in [key for key in self._open[name] if key[0] != seed]:
            self._open[name].pop(key).close()  # a seed is done when the next one starts
        run = load_run(self._folder)
        sink = self._openers[name](run, seed, world)
        self._open[name][seed, world] = sink
        for record in saved_records(run, seed, world):
            sink.write(record)

    def _leave(self, name: str, error: Exception) -> None:
        del self._openers[name]
        log.warning(
            "%s: %s: %s; the run goes on without it, and its records are in %s",
            *(name, type(error).__name__, error, self._folder),
        )


def flat_record(stem: str, row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row of the file `<stem>.jsonl`, as sinks take them."""
    prefix = "every_step/" if stem.endswith(EVERY_STEP) else ""
    numbers = {k: v for k, v in flatten(row).items() if isinstance(v, (int, float))}
    step = numbers.pop("step")
    return {"step": step, **{f"{prefix}{name}": value for name, value in numbers.items()}}


def saved_records(run: Run, seed: int, world: str) -> Iterator[dict[str, float]]:
    """The records of one world and seed that are on disk, in the order of their steps."""
    stems = (world, world + EVERY_STEP)
    files = [[flat_record(stem, row) for row in run.rows(seed, stem)] for stem in stems]
    yield from heapq.merge(*files, key=lambda record: record["step"])


def write_tensorboard(runs: Iterable[Run], root: Path, out: Path) -> Iterator[Path]:
    """Make TensorBoard files of saved runs; yields the folder of each run under `out`.

    A run's folder there is called as it is under `root`.
    """
    for run in runs:
        folder = out / (run.path.relative_to(root) if run.path != root else run.name)
        for seed in run.seeds:
            for world in run.worlds:
                sink = TensorBoardSink(folder / f"seed-{seed}" / world)
                for record in saved_records(run, seed, world):
                    sink.write(record)
                sink.close()
        yield folder
