"""quality: what a data set is worth, on its card and in quality.json."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bootstrap.environment import hardware
from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags
from bootstrap.files import pretty_json
from bootstrap.files import replace as replace_file
from bootstrap.forks import Control
from bootstrap.options import Execution
from bootstrap.shards import read_manifest
from generators.card import grid_image, write_card
from generators.label import (
    read_teacher,
    read_teacher_card,
)
from generators.quality import (
    Protocol,
    cross_test,
    image_distance,
    label_agreement,
    memorisation,
)
from generators.weights_file import refusing

SHIPPED = Path(__file__).resolve().parents[1] / "weights"


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """What a generated data set is worth, on its card and in quality.json."""

    data: Path
    """the generated data set"""
    real: Path
    """a data set of real images, made by `deep-bootstrap import`: stream = training images"""
    teacher: Path = SHIPPED / "teacher-v1.safetensors"
    """a classifier of real images: features, agreement"""
    train_on: tuple[str, ...] = ("generated", "real")
    """rows of the cross-test table; each is a network to train"""
    protocol: Protocol = field(default_factory=Protocol)
    execution: Execution = field(default_factory=Execution)


def run_quality(
    options: QualityOptions, flags: Flags, is_interrupted: Callable[[], bool]
) -> Iterator[str]:
    """Write quality.json, closest.png and the data card; finished parts are not done again."""
    data, real, protocol = options.data, options.real, options.protocol
    teacher, card = read_teacher(options.teacher, flags), read_teacher_card(options.teacher)
    with refusing(options.teacher, "teacher"):
        test_error = float(card["test_error"])
    sets = {"real": real, "generated": data}
    unknown = set(options.train_on) - set(sets)
    if unknown:
        raise ConfigurationError(f"--train-on {sorted(unknown)[0]}: use real, generated or both")

    distance = image_distance(data, real, teacher)
    kid = distance["generated"]["kid"]["mean"]
    yield f"KID on the teacher's features: {kid:.4f} (real: {distance['real']['kid']['mean']:.4f})"
    labels = label_agreement(data, teacher)
    yield f"the teacher agrees with {labels['agreement']:.3f} of the labels"
    copies, pictures = memorisation(data, real, teacher)
    grid = io.BytesIO()
    grid_image(pictures, n_columns=10).save(grid, format="png")
    replace_file(data / "closest.png", grid.getvalue())

    errors, n_train = {}, {}
    for name in options.train_on:
        control = Control(is_interrupted=is_interrupted)
        found = cross_test(sets[name], sets, protocol, flags, control)
        n_train[name] = found["n_train"]
        for test, error in found["errors"].items():
            errors[f"{name}_to_{test}"] = error
            yield f"trained on {name}, tested on {test}: error {error:.4f}"

    quality = {
        "schema": 1,
        "data": data.name,
        "generator": read_manifest(data).generator,
        "cross_test_error": errors,
        "n_train": n_train,
        "n_test": {name: read_manifest(path).n("test") for name, path in sets.items()},
        "protocol": protocol.describe(flags),
        "hardware": hardware(flags.device),
        "real": read_manifest(real).name,
        "teacher": {"name": options.teacher.stem, "test_error": test_error},
        "distance": distance,
        "labels": labels,
        "memorisation": copies,
    }
    replace_file(data / "quality.json", pretty_json(quality))
    write_card(data, read_manifest(data))
    yield f"{data / 'quality.json'}; see {data / 'README.md'}"
