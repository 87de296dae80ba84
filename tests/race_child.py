"""Publishes the same shards as its rivals at the same moment: `race_child.py FOLDER NAME N`.

Waits for a file `start`, then prints for each of N files whether it was the one that published it.
"""

import sys
import time
from pathlib import Path

import numpy as np

from bootstrap import shards
from bootstrap.files import publish
from bootstrap.shards import Columns, publish_shard


def columns(index):
    rng = np.random.default_rng(index)
    return Columns(
        images=rng.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8),
        labels=rng.integers(0, 10, 50),
        ids=50 * index + np.arange(50),
    )


def main(folder, name, n):
    won = []

    def watched(path, content):
        publish(path, content)
        won.append(path.name)

    shards.publish = watched
    (folder / f"ready-{name}").touch()
    while not (folder / "start").exists():
        time.sleep(0.001)
    for index in range(n):
        publish_shard(folder / "data", "test", index, columns(index), 10, {"source": "test"})
    print("\n".join(won))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
