"""Shards on many devices: worker processes on Ray, on this machine or on a cluster.

A worker builds its model once and takes one shard after the other. One that dies, alone or with its
node, costs the shard it was at: another worker makes it again. All nodes have the package installed
and see the data set and the weights at the same paths.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from bootstrap.cluster import capacity, connected, import_ray, refuse_device_by_index
from bootstrap.errors import BootstrapError, ConfigurationError
from bootstrap.execution import Flags
from bootstrap.shards import ShardRecord
from generators.missing import DEVICE_KEYS, Shard, difference
from generators.write import Job, make_shard

POLL_S = 0.5  # how soon a request to stop is seen
MAX_DEATHS = 4  # a worker, in a row and without a shard in between: then something is wrong


class Worker:
    """Makes shards in a process of its own."""

    def start(self, job: Job, flags: Flags) -> tuple[str, dict[str, Any]]:
        """Prepare for shards of one job; returns the node's name and the shards' provenance."""
        flags.apply()
        self.node = socket.gethostname()
        if not job.folder.exists():
            raise ConfigurationError(
                f"{self.node} does not see {job.folder}; use --data on a file system that all"
                " nodes share"
            )
        self.job, self.provenance = job, job.provenance()
        return self.node, self.provenance

    def make(self, shard: Shard) -> ShardRecord:
        """Make one shard."""
        return make_shard(self.job, shard, self.provenance, lambda n: None)


class Crew:
    """The workers of one job and what each is at; the shards of the dead go back to the queue."""

    def __init__(self, ray: Any, workers: RayWorkers, job: Job, shards: list[Shard]) -> None:
        self.queue = deque(shards)
        self._ray, self._job, self._flags = ray, job, workers.flags
        self._at_work: dict[Any, tuple[Any, Shard | None]] = {}  # call -> worker, its shard
        self._idle: list[Any] = []
        self._n_deaths = 0
        n_cpus, n_gpus = (workers.needs.get(kind, 0) for kind in ("CPU", "GPU"))
        self._kind = ray.remote(num_cpus=n_cpus, num_gpus=n_gpus)(Worker)
        self._n_workers = min(workers.n_at_once(ray.nodes()), len(shards))
        for _ in range(self._n_workers):
            self._add_worker()

    def is_busy(self) -> bool:
        """Whether a shard is being made."""
        return any(shard for _, shard in self._at_work.values())

    def hand_out(self) -> None:
        """Give every idle worker a shard, as long as there are any."""
        while self.queue and self._idle:
            worker, shard = self._idle.pop(), self.queue.popleft()
            self._at_work[worker.make.remote(shard)] = worker, shard

    def answers(self) -> Iterator[Any]:
        """What workers that are done returned: of Worker.start or of Worker.make.

        What they raise is raised here; BootstrapError if workers only ever die.
        """
        errors = self._ray.exceptions
        for call in self._ray.wait(list(self._at_work), timeout=POLL_S)[0]:
            worker, shard = self._at_work.pop(call)
            try:
                answer = self._ray.get(call)
            except errors.RayTaskError as error:
                raise error.cause from error
            except errors.RayError as error:
                self._ray.kill(worker)  # it may only be out of reach
                self._replace(shard, error)
            else:
                self._n_deaths = 0 if shard else self._n_deaths
                self._idle.append(worker)
                yield answer

    def _add_worker(self) -> None:
        worker = self._kind.remote()
        self._at_work[worker.start.remote(self._job, self._flags)] = worker, None

    def _replace(self, shard: Shard | None, error: Exception) -> None:
        self._n_deaths += 1
        if self._n_deaths > MAX_DEATHS * self._n_workers:
            raise BootstrapError(
                f"{self._n_deaths} workers died and no shard was made in between: too little"
                f" memory? the last one: {' '.join(str(error).split())}"
            )
        if shard:
            self.queue.appendleft(shard)
        if not self._idle:
            self._add_worker()


@dataclass(frozen=True, kw_only=True)
class RayWorkers:
    """Workers on Ray: `address` is `local` or a cluster's; each takes what `flags` run on."""

    address: str = "local"
    flags: Flags
    n_workers: int | None = None  # None: all that the cluster holds

    def __post_init__(self) -> None:
        import_ray()
        if self.n_workers is not None and self.n_workers < 1:
            raise ConfigurationError(f"--workers {self.n_workers}: give at least one")
        refuse_device_by_index(self.flags.device)

    @property
    def needs(self) -> dict[str, int]:
        """What a worker takes, in Ray's units."""
        is_cuda = self.flags.device.startswith("cuda")
        return {"GPU": 1} if is_cuda else {"CPU": self.flags.n_threads}

    def make_all(
        self,
        job: Job,
        shards: list[Shard],
        on_images: Callable[[int], None],
        is_interrupted: Callable[[], bool],
    ) -> int:
        """Make the shards; when asked to stop, those in work are finished. Returns how many."""
        ray = import_ray()
        job = replace(job, source=as_built(job.source), folder=job.folder.absolute())
        expected, n_made = job.provenance(), 0
        with connected(ray, self.address, self.needs.get("CPU", 0) * (self.n_workers or 1)):
            crew = Crew(ray, self, job, shards)
            while crew.is_busy() or (crew.queue and not is_interrupted()):
                for answer in crew.answers():
                    if isinstance(answer, ShardRecord):
                        n_made += 1
                        on_images(answer.n)
                    else:
                        refuse_other_node(answer, expected, job.allow_mixed_devices)
                if not is_interrupted():
                    crew.hand_out()
        return n_made

    def n_at_once(self, nodes: list[dict[str, Any]]) -> int:
        """How many workers to start; ConfigurationError if no node could ever hold one."""
        n_workers = self.n_workers or capacity(nodes, self.needs)
        if n_workers == 0:
            needs = ", ".join(f"{n} {kind}" for kind, n in self.needs.items())
            raise ConfigurationError(
                f"--ray {self.address}: no node has {needs} for a worker; use fewer --threads or"
                " another --device, or give --workers to wait for nodes"
            )
        return n_workers


def as_built(source: Any) -> Any:
    """The source without the networks that it read since: a worker reads and compiles its own."""
    return replace(source) if is_dataclass(source) and not isinstance(source, type) else source


def refuse_other_node(
    started: tuple[str, dict[str, Any]], here: dict[str, Any], allow_mixed_devices: bool
) -> None:
    """ConfigurationError if shards of a node would not be what this machine would make.

    `started` is the answer of Worker.start. Device models may differ if they are allowed to: each
    shard's record names its own.
    """
    node, there = started
    pairs = difference(there, here, DEVICE_KEYS if allow_mixed_devices else ())
    if pairs:
        is_device = set(pairs) <= set(DEVICE_KEYS)
        remedy = "pass --allow-mixed-devices" if is_device else "install the same on every node"
        raise ConfigurationError(
            f"node {node} would make other bytes than this machine: {'; '.join(pairs.values())};"
            f" use equal nodes or {remedy}"
        )
