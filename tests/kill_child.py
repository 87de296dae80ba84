"""Runs a job and kills itself (SIGKILL) at a given call: `kill_child.py JOB FOLDER FUNCTION CALL`.

FUNCTION is `module:name` of something the job calls; CALL counts from 1, 0 means never. `@after` at
its end lets the call happen first. With FUNCTION `announce` the job prints the phase that begins,
for a parent that kills when it likes.
"""

import importlib
import os
import signal
import sys
from pathlib import Path


def kill_at(target: str, call: int) -> None:
    name, _, after = target.partition("@")
    module_name, _, attribute = name.partition(":")
    module = importlib.import_module(module_name)
    original = getattr(module, attribute)
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, attribute, wrapped)


PHASES = {
    "sampling": "generators.write:label_and_sample",
    "building": "bootstrap.shards:build_shard",
    "publishing": "bootstrap.shards:publish",  # a shard, then its record
}


def announce_phases() -> None:
    for phase, target in PHASES.items():
        module_name, _, attribute = target.partition(":")
        module = importlib.import_module(module_name)
        setattr(module, attribute, announced(phase, getattr(module, attribute)))


def announced(phase, original):
    def wrapped(*args, **kwargs):
        is_record = phase == "publishing" and args[0].suffix == ".json"
        print("recording" if is_record else phase, flush=True)
        return original(*args, **kwargs)

    return wrapped


def generate_job(folder: Path) -> None:
    from test_write import SIZES, SOURCE

    from generators.write import generate

    generate(SOURCE, folder, SIZES)


def compare_job(folder: Path) -> None:
    from test_paired import FLAGS, RECIPE, SIZES, N

    from bootstrap.forks import Control
    from bootstrap.keep import Evenly, Keep
    from bootstrap.pair import run_pair
    from generators.toy import ToySource
    from generators.write import generate

    generate(ToySource(side=8), folder / "data", SIZES)
    control = Control(checkpoint_every_s=0.05)
    keep = Keep(test_results=True, checkpoints=Evenly(n=6))
    run_pair(
        *(RECIPE, folder / "data", folder / "out"),
        n_samples=N,
        flags=FLAGS,
        keep=keep,
        control=control,
    )


def sweep_job(folder: Path) -> None:
    from bootstrap.cli import main

    sys.argv = ["deep-bootstrap", "sweep", str(folder / "grid.json"), "--out", str(folder / "out")]
    main()


if __name__ == "__main__":
    job, folder, function, call = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent))
    if function == "announce":
        announce_phases()
    elif int(call):
        kill_at(function, int(call))
    {"generate": generate_job, "compare": compare_job, "sweep": sweep_job}[job](Path(folder))
