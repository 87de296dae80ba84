"""Pre-training as a choice: both worlds start from a checkpoint, as `compare --init` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bootstrap.errors import ConfigurationError
from bootstrap.interventions.choice import Choice, Setting, WorldClass

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bootstrap.pretrained import Pretrained
    from bootstrap.recipe import Recipe
    from bootstrap.shards import Manifest


@dataclass(frozen=True, kw_only=True)
class Pretraining(Choice):
    """All seeds start from the checkpoint `weights` of `deep-bootstrap pretrain`, a head of zeros.

    With a `strength` below 1 from a point on the line to it from the seed's own weights.
    """

    weights: str = ""
    strength: float = 1.0
    world_class: ClassVar[WorldClass] = WorldClass.REFERENCE

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigurationError(
                "pretraining: weights='FILE' is missing; `deep-bootstrap pretrain` makes one"
            )
        if not 0 <= self.strength <= 1:
            raise ConfigurationError(f"pretraining: strength={self.strength} must be in [0, 1]")

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Choice`."""
        return (Path(self.weights),)

    def read(self) -> Pretrained:
        """The checkpoint; errors as in `read_pretrained`."""
        from bootstrap.pretrained import read_pretrained

        return read_pretrained(Path(self.weights))

    def check_data(self, recipe: Recipe, manifest: Manifest, n_samples: Sequence[int]) -> None:
        """See `Choice`: it fits the model, and was not trained on the data of the comparison."""
        self.read().check(recipe, manifest)

    def wrap_model(self, model: nn.Module, setting: Setting) -> nn.Module:
        """See `Choice`."""
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.read().load_into(model)
        given = model.state_dict()
        model.load_state_dict({name: self.between(own[name], given[name]) for name in own})
        return model

    def between(self, own: Tensor, given: Tensor) -> Tensor:
        """The point on the line; of counts the nearer end."""
        if not own.is_floating_point():
            return given if self.strength >= 0.5 else own
        return own.lerp(given, self.strength)
