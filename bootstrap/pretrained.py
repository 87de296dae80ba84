"""A pre-trained checkpoint: weights without a head, and a card that says where they are from.

    <name>.safetensors   every tensor of a model but its head's
    <name>.json          the card: method, model, data, steps, seed, sha256 of the weights

Both worlds of a pair may start from one, all seeds alike: the whole model is fine-tuned, with a
head of zeros. `bootstrap.pretraining` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from bootstrap.checkpoint import tensor_bytes
from bootstrap.errors import ConfigurationError, DataError
from bootstrap.files import pretty_json, replace, sha256_hex
from bootstrap.models.head import last_linear
from bootstrap.recipe import TABLES, Recipe
from bootstrap.shards import Manifest
from bootstrap.spec import format_spec

SCHEMA = 1
UNSEEN = ("test", "reference", "stream")  # splits that no checkpoint may have been trained on
N_NAMED = 3  # tensors in an error
REMEDY = "make one with `deep-bootstrap pretrain`"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights to start from, by their names in the model, and their card."""

    path: Path
    card: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def sha256(self) -> str:
        """Of the file of weights; part of a run's identity."""
        return str(self.card["weights_sha256"])

    def load_into(self, model: nn.Module) -> None:
        """Give `model` these weights and a head of zeros.

        ConfigurationError naming the tensors that do not fit; the model is then left as it was.
        """
        own, head = model.state_dict(), head_names(model)
        body = {name: tensor for name, tensor in own.items() if name not in head}
        refuse_mismatches(body, self.tensors, str(self.path), str(self.card.get("model")))
        zeros = {name: torch.zeros_like(own[name]) for name in head}
        model.load_state_dict(self.tensors | zeros)

    def check(self, recipe: Recipe, manifest: Manifest) -> None:
        """ConfigurationError unless it fits the recipe's model and has not seen the pair's data."""
        with torch.random.fork_rng(devices=[]):
            self.load_into(recipe.model.build(manifest.image_shape, manifest.n_classes))
        if split := seen_split(self.card.get("data") or {}, manifest):
            raise ConfigurationError(
                f"{self.path} was trained on the split {split} of {manifest.name}, so nothing there"
                " is new to it; pre-train on its `pretrain` split (`deep-bootstrap generate"
                " --n-pretrain N` makes one) or on other data"
            )

    def to_json(self) -> dict[str, Any]:
        """The card as a run keeps it, with the file's name."""
        data = {k: v for k, v in (self.card.get("data") or {}).items() if k != "shards_sha256"}
        return {"file": self.path.name, **self.card, **({"data": data} if data else {})}


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The tensors of a classifier's head, its last linear layer, as `state_dict` names them."""
    without = "the model has no linear layer, so no head that could be replaced"
    name, _ = last_linear(model, without)
    prefix = f"{name}." if name else ""
    return tuple(name for name in model.state_dict() if name.startswith(prefix))


def refuse_mismatches(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str, of: str
) -> None:
    """ConfigurationError naming the tensors unless all that are wanted are given."""
    if found := mismatches(wanted, given):
        more = f" and {len(found) - N_NAMED} more" if len(found) > N_NAMED else ""
        raise ConfigurationError(
            f"{what} ({of}) does not fit the model: {'; '.join(found[:N_NAMED])}{more};"
            " give the --model that it is of, or other weights"
        )


def mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """In words, each tensor that is missing, of another shape, or too many."""
    found = [f"{name} is missing" for name in wanted if name not in given]
    found += [
        f"{name} is {tuple(given[name].shape)}, in the model {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    return found + [f"{name} is not in the model" for name in sorted(given) if name not in wanted]


def seen_split(data: Mapping[str, Any], manifest: Manifest) -> str | None:
    """The split of a pair's data set that a checkpoint was trained on, by the `data` of its card.

    A shard of the same bytes, or the same split by the same generator.
    """
    seen = {*data.get("shards_sha256", ())}
    for shard in manifest.shards:
        if shard.split in UNSEEN and shard.sha256 in seen:
            return shard.split
    split = data.get("split")
    is_same = bool(manifest.generator) and data.get("generator") == manifest.generator
    return str(split) if is_same and split in UNSEEN else None


def about_data(
    manifest: Manifest, split: str, n_samples: int, classes: tuple[int, ...] = ()
) -> dict[str, Any]:
    """What a card says of the data that weights were trained on."""
    return {
        "name": manifest.name,
        "split": split,
        "n_samples": n_samples,
        **({"classes": [manifest.class_names[k] for k in classes]} if classes else {}),
        "mean": list(manifest.mean),
        "deviation": list(manifest.deviation),
        "generator": manifest.generator,
        "shards_sha256": [shard.sha256 for shard in manifest.split(split)],
    }


def write_pretrained(path: Path, model: nn.Module, recipe: Recipe, card: dict[str, Any]) -> Path:
    """Write a model's weights without its head, and their card beside them; returns `path`."""
    head = head_names(model)
    body = {name: tensor for name, tensor in model.state_dict().items() if name not in head}
    content = tensor_bytes(body)
    card = {
        "schema": SCHEMA,
        "weights_sha256": sha256_hex(content),
        "model": format_spec(recipe.model, TABLES["model"]),
        **card,
    }
    replace(path, content)
    replace(card_path(path), pretty_json(card))
    return path


def card_path(path: Path) -> Path:
    """Where the card of a file of weights is."""
    return path.with_suffix(".json")


def read_pretrained(path: Path) -> Pretrained:
    """The checkpoint at `path`.

    ConfigurationError if it is not there; DataError without a card, or if a byte is another one.
    """
    if not path.is_file():
        raise ConfigurationError(f"--init {path}: there is no such file; {REMEDY}")
    content, card_file = path.read_bytes(), card_path(path)
    try:
        card = json.loads(card_file.read_bytes())
        expected = card["weights_sha256"]
    except FileNotFoundError:
        raise DataError(
            f"{path}: no card beside it ({card_file.name}), so it may have seen anything; {REMEDY}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{card_file}: not the card of a checkpoint ({error!r}); {REMEDY}"
        ) from None
    if card.get("schema", SCHEMA) > SCHEMA:
        raise DataError(
            f"{card_file}: schema {card['schema']} is newer than {SCHEMA}; update the program"
        )
    if sha256_hex(content) != expected:
        raise DataError(f"{path} is corrupt: its sha256 is not the card's; restore it or {REMEDY}")
    try:
        return Pretrained(path, card, load(content))
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error}); {REMEDY}") from None
