"""Design choices: one file each; see `bootstrap.interventions.choice` for what one may change.

`INTERVENTIONS` is all there are by name; one of your own is named `package.module:Name` or
`file.py:Name`. Class names are part of the format: a choice's draws depend on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from bootstrap.errors import ConfigurationError
from bootstrap.interventions.adversarial import FGM, FGSM, PGD
from bootstrap.interventions.calibration import Calibration
from bootstrap.interventions.choice import (
    Choice,
    Forward,
    Gradient,
    GradientFn,
    Inputs,
    LossFn,
    SampleLossFn,
    Scored,
    Setting,
    StepContext,
    UpdateFn,
    WorldClass,
)
from bootstrap.interventions.class_weights import ClassWeights
from bootstrap.interventions.dropout import Dropout
from bootstrap.interventions.error_by import ErrorByEnvironment, ErrorByGroup
from bootstrap.interventions.flooding import Flooding
from bootstrap.interventions.focal import Focal
from bootstrap.interventions.forgetting import ForgettingEvents, ProbeFlips
from bootstrap.interventions.gradient_penalty import GradientPenalty
from bootstrap.interventions.jacobian import JacobianPenalty
from bootstrap.interventions.label_noise import LabelNoise, LabelNoiseTrainAndTest
from bootstrap.interventions.label_smoothing import LabelSmoothing
from bootstrap.interventions.logit_adjustment import LogitAdjustment, LogitAdjustmentPostHoc
from bootstrap.interventions.long_tail import LongTail
from bootstrap.interventions.mixing import Cutmix, Cutout, Mixup
from bootstrap.interventions.noise import InputNoise, WeightNoise
from bootstrap.interventions.penalty import L1, L2, WEISSI
from bootstrap.interventions.pretraining import Pretraining
from bootstrap.interventions.pruning import (
    EL2N,
    ForgettingScore,
    GraNd,
    GraNdLastLayer,
    RandomPruning,
)
from bootstrap.interventions.robust_error import RobustError
from bootstrap.interventions.sam import SAM
from bootstrap.interventions.spectral import SpectralNormalisation, SpectralPenalty
from bootstrap.interventions.spurious import Spurious
from bootstrap.interventions.squared_error import MSE
from bootstrap.interventions.superclasses import Superclasses
from bootstrap.interventions.vat import VAT
from bootstrap.interventions.weight_decay import WeightDecay

__all__ = [
    "INTERVENTIONS",
    "Choice",
    "Forward",
    "Gradient",
    "GradientFn",
    "Inputs",
    "LossFn",
    "SampleLossFn",
    "Scored",
    "Setting",
    "StepContext",
    "UpdateFn",
    "WorldClass",
    "check_choices",
    "check_execution",
    "is_wrapped",
    "name_of",
    "step_cost",
]

INTERVENTIONS: dict[str, type] = {
    "cutout": Cutout,
    "mixup": Mixup,
    "cutmix": Cutmix,
    "input_noise": InputNoise,
    "weight_noise": WeightNoise,
    "dropout": Dropout,
    "label_smoothing": LabelSmoothing,
    "flooding": Flooding,
    "l1": L1,
    "l2": L2,
    "weight_decay": WeightDecay,
    "weissi": WEISSI,
    "focal": Focal,
    "mse": MSE,
    "class_weights": ClassWeights,
    "gradient_penalty": GradientPenalty,
    "jacobian_penalty": JacobianPenalty,
    "spectral_penalty": SpectralPenalty,
    "spectral_normalisation": SpectralNormalisation,
    "fgm": FGM,
    "fgsm": FGSM,
    "pgd": PGD,
    "vat": VAT,
    "sam": SAM,
    "logit_adjustment": LogitAdjustment,
    "logit_adjustment_post_hoc": LogitAdjustmentPostHoc,
    "long_tail": LongTail,
    "spurious": Spurious,
    "superclasses": Superclasses,
    "label_noise": LabelNoise,
    "label_noise_train_and_test": LabelNoiseTrainAndTest,
    "forgetting_events": ForgettingEvents,
    "probe_flips": ProbeFlips,
    "robust_error": RobustError,
    "calibration": Calibration,
    "error_by_group": ErrorByGroup,
    "error_by_environment": ErrorByEnvironment,
    "random_pruning": RandomPruning,
    "el2n": EL2N,
    "grand": GraNd,
    "grand_last_layer": GraNdLastLayer,
    "forgetting_score": ForgettingScore,
    "pretraining": Pretraining,
}
OF_THE_LOSS = ("wrap_sample_loss", "wrap_loss")


def check_choices(choices: Sequence[Choice]) -> None:
    """ConfigurationError for what is no choice, declares no world class, or does not go together.

    Undeclared is refused, for nobody could say what it means in the ideal world.
    """
    names = [name_of(choice) for choice in choices]
    for name, choice in zip(names, choices, strict=True):
        if not isinstance(choice, Choice):
            raise ConfigurationError(
                f"choice {name}: derive it from bootstrap.interventions.Choice"
            )
        if not isinstance(getattr(choice, "world_class", None), WorldClass):
            raise ConfigurationError(
                f"choice {name} declares no world_class: say what it means where no sample is seen"
                " twice, e.g. `world_class: ClassVar = WorldClass.STRICT`"
            )
        if names.count(name) > 1:
            raise ConfigurationError(f"choice {name} is given twice; give it once")
        for other, why in choice.not_with:
            if other in names:
                raise ConfigurationError(f"choices {name} and {other} do not go together: {why}")
        choice.check_with([other for other in choices if other is not choice])


def check_execution(choices: Sequence[Choice], *, is_stacked: bool, is_compiled: bool) -> None:
    """ConfigurationError for a choice that cannot be run in this way."""
    for choice in choices:
        name = name_of(choice)
        if is_stacked and any(is_wrapped(choice, seam) for seam in OF_THE_LOSS):
            raise ConfigurationError(
                f"choice {name} changes the loss, which --replicas takes for all seeds at once;"
                " use --replicas 1"
            )
        if is_compiled and choice.differentiates_twice:
            raise ConfigurationError(
                f"choice {name} differentiates twice, which a compiled model cannot;"
                " use --compile off"
            )


def is_wrapped(choice: Choice, seam: str) -> bool:
    """Whether a choice changes what goes through this seam."""
    return getattr(type(choice), seam) is not getattr(Choice, seam)


def name_of(choice: object) -> str:
    """What a choice is called on the command line."""
    names = {cls: name for name, cls in INTERVENTIONS.items()}
    return names.get(type(choice), f"{type(choice).__module__}:{type(choice).__qualname__}")


def step_cost(choices: Sequence[Choice]) -> float:
    """A step's operations with all of these, as a multiple of a plain step's."""
    return 1 + sum(choice.cost - 1 for choice in choices)
