"""How many worlds are trained at once where `--replicas auto` asks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags, bf16_units
from bootstrap.interventions import check_execution
from bootstrap.recipe import TABLES, Recipe
from bootstrap.shards import read_manifest
from bootstrap.spec import format_spec

N_AUTO = 4
# Stacking pays for models that leave a device idle: up to so many operations a step of one, by
# family and hardware. Measured with `make bench-replicas`; what is not named is trained one by one:
# on CPUs because it does not pay there, on GPUs because nobody has measured it yet.
PAYS_UP_TO_FLOP = {("vit", "avx512_bf16"): 2e9}


def resolve_replicas(
    wanted: int | Literal["auto"], recipe: Recipe, data: Path, flags: Flags
) -> int:
    """The number asked for, or what `auto` means: 4 where that is faster, else 1.

    It does not depend on the number of seeds, so that a run can be extended by more of them.
    """
    if wanted != "auto":
        return wanted
    kind = flags.torch_device.type
    family, _, _ = format_spec(recipe.model, TABLES["model"]).partition("(")
    limit = PAYS_UP_TO_FLOP.get((family, bf16_units() if kind == "cpu" else kind), 0)
    if not limit or flags.ranks > 1 or not _can_be_stacked(recipe):
        return 1
    manifest = read_manifest(data)
    flop = step_flop(recipe, manifest.image_shape, manifest.n_classes)
    return N_AUTO if flop <= limit else 1


def _can_be_stacked(recipe: Recipe) -> bool:
    try:
        check_execution(recipe.choices, is_stacked=True, is_compiled=False)
    except ConfigurationError:
        return False
    return True


def step_flop(recipe: Recipe, image_shape: tuple[int, int, int], n_classes: int) -> int:
    """Operations of a training step, forward and backward, counted without taking it."""
    height, width, channels = image_shape
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = recipe.model.build(image_shape, n_classes)
        logits = model(torch.empty(recipe.batch_size, channels, height, width))
        cross_entropy(logits, torch.zeros(recipe.batch_size, dtype=torch.long)).backward()
    return int(counter.get_total_flops())
