"""Labels: the class a sample was asked for, and what a teacher says of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bootstrap.batch import Normalisation, to_unit_range
from bootstrap.errors import DataError
from bootstrap.execution import Flags
from bootstrap.files import file_sha256
from bootstrap.models import MODELS
from bootstrap.randomness import Stream, integers
from bootstrap.shards import check_normalisation
from bootstrap.spec import parse_spec
from bootstrap.worlds import BLOCK
from generators.weights_file import read_card, refusing

LabelMode = Literal["conditional", "teacher", "agree"]
MAX_ATTEMPTS = 16  # of mode `agree`; an id that never agrees keeps attempt 0


def class_of_ids(
    ids: Int[np.ndarray, " n"], n_classes: int, seed: int = 0
) -> Int[np.ndarray, " n"]:
    """The class of each id: i.i.d. uniform draws, a function of the id alone."""
    labels = np.empty(len(ids), dtype=np.int64)
    blocks, offsets = np.divmod(ids, BLOCK)
    for block in np.unique(blocks):
        draws = integers(n_classes, seed, Stream.SAMPLE_CLASS, int(block), n=BLOCK)
        labels[blocks == block] = draws[offsets[blocks == block]]
    return labels


@dataclass(frozen=True)
class Teacher:
    """A trained classifier with its normalisation; `probabilities` is what it thinks of images."""

    model: nn.Module
    normalise: Normalisation
    flags: Flags
    sha256: str = ""
    temperature: float = 1.0
    path: Path = Path()  # where read_teacher found it
    image_shape: tuple[int, ...] = ()  # of the images it was trained on: height, width, channels

    def __reduce__(self) -> tuple[Any, ...]:
        return read_teacher, (self.path, self.flags)  # a worker reads and compiles it itself

    def probabilities(
        self, images: UInt8[np.ndarray, "n height width channel"]
    ) -> Float[np.ndarray, "n classes"]:
        """Calibrated class probabilities of each image, float32."""
        return (self.logits(images) / self.temperature).softmax(dim=1).cpu().numpy()

    @torch.no_grad()
    def features(
        self, images: UInt8[np.ndarray, "n height width channel"]
    ) -> Float[Tensor, "n dim"]:
        """What the last linear layer sees of each image, float32."""
        last = [m for m in self.model.modules() if isinstance(m, nn.Linear)][-1]
        seen: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
        try:
            self.logits(images)
        finally:
            hook.remove()
        return seen[0]

    @torch.no_grad()
    def logits(
        self, images: UInt8[np.ndarray, "n height width channel"]
    ) -> Float[Tensor, "n classes"]:
        """Uncalibrated logits of each image, float32."""
        x = torch.from_numpy(images).to(self.flags.torch_device)
        with self.flags.autocast():
            return self.model(self.normalise(to_unit_range(x))).float()


def fit_temperature(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """The divisor of the logits with the least cross-entropy (Guo et al. 2017).

    Fit it on images that the network was not trained on.
    """
    exact = logits.double()

    def loss(log_t: float) -> float:
        return float(cross_entropy(exact / np.exp(log_t), labels))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def write_teacher(path: Path, model: nn.Module, card: dict[str, Any]) -> None:
    """Save weights as float16 safetensors.

    `card` holds model, image_shape, n_classes, mean, deviation and temperature.
    """
    from safetensors.torch import save

    from bootstrap.files import replace

    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    replace(path, save(weights, metadata={"card": json.dumps(card)}))


def read_teacher_card(path: Path) -> dict[str, Any]:
    """What `write_teacher` was told; DataError if there is no such file or it is not a teacher."""
    if not path.exists():
        raise DataError(f"{path}: no teacher there; train one with `deep-bootstrap train-teacher`")
    return read_card(path, "teacher")


def read_teacher(path: Path, flags: Flags) -> Teacher:
    """A teacher from a file of `write_teacher`, ready to label; DataError if there is none.

    Its model is one of the package's: a file of weights must not name code to run.
    """
    from safetensors.torch import load_file

    card = read_teacher_card(path)
    with refusing(path, "teacher"):
        weights = load_file(path)
        shape, mean, deviation = (tuple(card[k]) for k in ("image_shape", "mean", "deviation"))
        check_normalisation(mean, deviation, shape[2])
        temperature = float(card.get("temperature", 1.0))
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature {temperature}")
        spec = parse_spec(card["model"], MODELS, "model", may_import=False)
        model = spec.build(shape, card["n_classes"])
        model.load_state_dict(
            {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
        )
    model = (
        model.to(flags.torch_device, memory_format=torch.channels_last).eval().requires_grad_(False)
    )
    if flags.compiled:
        model.compile(dynamic=False)
    normalise = Normalisation.of(mean, deviation, flags.torch_device)
    return Teacher(model, normalise, flags, file_sha256(path), temperature, path.absolute(), shape)
