"""Which samples are learned and forgotten: in training, and of the fixed images of evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bootstrap.interventions.choice import (
    Choice,
    Gradient,
    GradientFn,
    Inputs,
    Scored,
    Setting,
    StepContext,
    WorldClass,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

MIXES = "it mixes labels, so that no sample is simply right or wrong"


@dataclass(frozen=True, kw_only=True)
class ForgettingEvents(Choice):
    """Counts presentations at which a sample is wrong that was right at the one before.

    Toneva et al. 2019: by the training forward pass (before the update, augmented, train mode), at
    the sample's own presentations. Where every sample is new nothing can be forgotten.
    """

    world_class: ClassVar[WorldClass] = WorldClass.IDENTITY
    not_with: ClassVar[tuple[tuple[str, str], ...]] = (("mixup", MIXES), ("cutmix", MIXES))

    def init_state(self, model: nn.Module, setting: Setting) -> dict[str, Tensor]:
        """By sample of the pool: how often forgotten, right at last, ever right, ever seen."""
        import torch

        n, device = setting.pool_n_samples, setting.device
        flags = ("was_right", "is_learned", "is_seen")
        return {
            "n_forgotten": torch.zeros(n, dtype=torch.int16, device=device),
            **{name: torch.zeros(n, dtype=torch.bool, device=device) for name in flags},
        }

    def wrap_gradient(self, gradient: GradientFn, context: StepContext) -> GradientFn:
        """See `Choice`; of several gradients in a step the first one is the presentation."""
        import torch

        presented: list[bool] = []

        def counted(inputs: Inputs) -> Gradient:
            found, n = gradient(inputs), len(inputs.ids) * context.ranks.n
            if presented:
                return found
            presented.append(True)
            right = (found.logits.argmax(dim=1) == inputs.labels).double()
            index = torch.from_numpy(inputs.index).double().to(right.device)
            rows = context.ranks.gather(torch.stack([right, index]), n)
            self.count(rows[0] > 0, rows[1].long(), context.state)
            return found

        return counted

    def count(self, right: Tensor, index: Tensor, state: dict[str, Tensor]) -> None:
        """Note which samples of the pool were right; one twice in a batch is seen once."""
        is_forgotten = state["was_right"][index] & ~right
        state["n_forgotten"][index] += is_forgotten.to(state["n_forgotten"].dtype)
        state["was_right"][index] = right
        state["is_learned"][index] |= right
        state["is_seen"][index] = True

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """Of the samples seen: events each, and the shares never learned and never forgotten."""
        state = context.state
        seen = state["is_seen"]
        n = max(int(seen.sum()), 1)
        never = state["is_learned"] & (state["n_forgotten"] == 0)
        return {
            "forgetting_events": int(state["n_forgotten"].sum()) / n,
            "never_learned_fraction": int((seen & ~state["is_learned"]).sum()) / n,
            "unforgettable_fraction": int(never.sum()) / n,
        }


@dataclass(frozen=True, kw_only=True)
class ProbeFlips(Choice):
    """Counts how often an image of a fixed set turns right or wrong between evaluations.

    What forgetting means where nothing is seen twice: of test images in every world, and in a real
    world of its training images too. Evaluations that only some N of a pair have do not count.
    """

    world_class: ClassVar[WorldClass] = WorldClass.DIAGNOSTIC
    max_n: ClassVar[int] = 10_000  # images of each set

    def init_state(self, model: nn.Module, setting: Setting) -> dict[str, Tensor]:
        """By image: right at the last evaluation, and how often it has turned; images so far."""
        import torch

        names, n, device = ("test", "train"), self.max_n, setting.device
        return {
            **{f"{k}_right": torch.zeros(n, dtype=torch.bool, device=device) for k in names},
            **{f"{k}_flips": torch.zeros(n, dtype=torch.int16, device=device) for k in names},
            **{f"{k}_n": torch.zeros((), dtype=torch.int64, device=device) for k in names},
        }

    def observe(self, test: Scored, probe: Scored | None, context: StepContext) -> None:
        """See `Choice`."""
        state = context.state
        for name, scored in (("test", test), ("train", probe)):
            if scored is not None:
                right = (scored.predicted == scored.labels)[: self.max_n]
                before, flips = state[f"{name}_right"], state[f"{name}_flips"]
                n = min(len(right), state[f"{name}_n"].item() or len(right))  # the last has more
                if state[f"{name}_n"]:
                    flips[:n] += (before[:n] != right[:n]).to(flips.dtype)
                before[:n] = right[:n]
                state[f"{name}_n"].fill_(n)

    def measure(self, test: Scored, context: StepContext) -> dict[str, float]:
        """Flips of a test image so far."""
        return {"test_flips": self.mean_flips("test", len(test.ids), context)}

    def measure_probe(self, probe: Scored, context: StepContext) -> dict[str, float]:
        """Flips of a training image so far."""
        return {"flips": self.mean_flips("train", len(probe.ids), context)}

    def mean_flips(self, name: str, n: int, context: StepContext) -> float:
        """Of the first `n` images, or of those that were scored every time."""
        n = min(n, int(context.state[f"{name}_n"]) or n)
        return context.state[f"{name}_flips"][:n].double().mean().item()
