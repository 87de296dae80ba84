"""Pairs of a sweep or a study as tasks on Ray; all nodes see package, data and results at the same
paths.

A task that dies, alone or with its node, is started again by Ray and goes on from what it had
saved; the lock on a run's folder keeps two from one pair.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bootstrap.cluster import capacity, connected, import_ray, refuse_device_by_index
from bootstrap.errors import ConfigurationError, Interrupted, StorageError
from bootstrap.execution import Flags
from bootstrap.forks import Control
from bootstrap.sweep import Ended, Job, Watch

POLL_S = 0.5  # how soon a request to stop is seen
MAX_DEATHS = 4  # of one pair's task: then something is wrong


@dataclass(frozen=True, kw_only=True)
class RayPairs:
    """Pairs on Ray: `address` is `local` or a cluster's; each takes what its flags run on."""

    address: str = "local"
    gpus_per_pair: float = 1.0

    def __post_init__(self) -> None:
        import_ray()
        if self.gpus_per_pair <= 0:
            raise ConfigurationError(f"--gpus-per-pair {self.gpus_per_pair}: give more than 0")

    def needs(self, flags: Flags) -> dict[str, float]:
        """What a pair takes, in Ray's units."""
        refuse_device_by_index(flags.device)
        is_cuda = flags.device.startswith("cuda")
        return {"GPU": self.gpus_per_pair} if is_cuda else {"CPU": flags.n_threads}

    def run_all(self, jobs: list[Job], watch: Watch) -> Ended:
        """Run the jobs, as many at once as the cluster holds; asked to stop, all save and end."""
        if not jobs:
            return
        ray = import_ray()
        needs = [self.needs(job.flags) for job in jobs]
        n_cpus = max((int(need.get("CPU", 1)) for need in needs), default=1)
        with connected(ray, self.address, n_cpus), _stop_file(jobs) as stop_file:
            tasks, nodes = {}, ray.nodes()
            for job, need in zip(jobs, needs, strict=True):
                if capacity(nodes, need) == 0:
                    what = ", ".join(f"{n:g} {kind}" for kind, n in need.items())
                    raise ConfigurationError(
                        f"--ray {self.address}: no node has {what} for a pair; use fewer --threads,"
                        " another --device or fewer --gpus-per-pair"
                    )
                takes = {"num_cpus": need.get("CPU", 0), "num_gpus": need.get("GPU", 0)}
                task = ray.remote(**takes, max_retries=MAX_DEATHS)(run_job)
                tasks[task.remote(_as_sent(job), stop_file)] = job
            yield from _wait(ray, tasks, watch, stop_file)


def _wait(ray: Any, tasks: dict[Any, Job], watch: Watch, stop_file: Path) -> Ended:
    """Jobs as their tasks end; those that were stopped are not among them."""
    while tasks:
        if watch.is_interrupted():
            stop_file.touch()
        for task in ray.wait(list(tasks), timeout=POLL_S)[0]:
            job = tasks.pop(task)
            try:
                ray.get(task)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, StorageError):
                    raise error.cause from error
                if not isinstance(error.cause, Interrupted):
                    yield job, error.cause
            except ray.exceptions.RayError as error:
                yield job, error
            else:
                yield job, None


def run_job(job: Job, stop_file: Path) -> None:
    """One pair, in a process of its own; Interrupted once the stop file is there."""
    if stop_file.exists():
        raise Interrupted(f"{job.options.out}: stopped before the pair began")
    if not job.options.data_folder.exists():
        raise ConfigurationError(
            f"{socket.gethostname()} does not see {job.options.data_folder}; use --data on a file"
            " system that all nodes share"
        )
    if not job.is_done():  # a task that is started again may have been
        job.run(Control(is_interrupted=stop_file.exists))


def _as_sent(job: Job) -> Job:
    """The job without what it has read, and with paths that do not depend on where it runs."""
    options = job.options
    out, data = options.out.absolute(), options.data_folder.absolute()
    init = options.init.absolute() if options.init else None
    return replace(job, options=replace(options, out=out, data=data, init=init))


@contextmanager
def _stop_file(jobs: list[Job]) -> Iterator[Path]:
    """A path in the results folder: once there is a file, tasks on all nodes save and end."""
    out = jobs[0].options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f".stop-{uuid.uuid4().hex}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
