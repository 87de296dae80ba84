"""Ray, on this machine or on a cluster: connecting, and how much it holds."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bootstrap.errors import ConfigurationError
from bootstrap.execution import n_cores

OBJECT_STORE_BYTES = 100_000_000  # nearly the least that Ray takes: workers write files themselves


def import_ray() -> Any:
    """Ray, its usage reports off; ConfigurationError if it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise ConfigurationError(
            "--ray: the package ray is not installed; pip install 'deep-bootstrap[cluster]'"
        ) from None
    return ray


@contextmanager
def connected(ray: Any, address: str, n_cpus: int = 1) -> Iterator[None]:
    """With the cluster at `address`, or one of this machine's cores, `n_cpus` at least (`local`).

    A connection made before is kept. ConfigurationError if no cluster answers.
    """
    if ray.is_initialized():
        yield
        return
    refuse_silent_address(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray puts its own in place
    try:
        if address == "local":
            ray.init(
                address="local",
                num_cpus=max(n_cores(), n_cpus),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        raise no_cluster(address, error) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        ray.shutdown()


def capacity(nodes: list[dict[str, Any]], needs: Mapping[str, float]) -> int:
    """How many workers with these needs the live nodes hold together."""
    return sum(
        min(int(node["Resources"].get(kind, 0) // n) for kind, n in needs.items())
        for node in nodes
        if node["Alive"]
    )


def refuse_silent_address(address: str) -> None:
    """ConfigurationError if nothing listens there; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as error:
            raise no_cluster(address, error) from None


def no_cluster(address: str, why: Exception) -> ConfigurationError:
    """What to say when no cluster answers."""
    return ConfigurationError(
        f"--ray {address}: no Ray cluster answers there ({why});"
        " start one with `ray start --head`, or use --ray local"
    )


def refuse_device_by_index(device: str) -> None:
    """ConfigurationError for a GPU but the first: Ray gives each worker one of its own."""
    if device.startswith("cuda") and device != "cuda:0":
        raise ConfigurationError(
            f"--device {device} with --ray: Ray gives each worker a GPU of its own;"
            " use --device cuda"
        )
