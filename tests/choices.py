"""Every design choice at strengths that tests need, and runs of a few steps with it."""

import atexit
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from test_paired import FLAGS
from torch import nn

from bootstrap.augment import CropFlip
from bootstrap.batch import Normalisation
from bootstrap.forks import Control, SeedRun
from bootstrap.interventions import Choice, Setting, StepContext
from bootstrap.interventions.adversarial import FGM, FGSM, PGD
from bootstrap.interventions.calibration import Calibration
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
from bootstrap.interventions.scores import Scores
from bootstrap.interventions.spectral import SpectralNormalisation, SpectralPenalty
from bootstrap.interventions.spurious import Spurious
from bootstrap.interventions.squared_error import MSE
from bootstrap.interventions.superclasses import Superclasses
from bootstrap.interventions.vat import VAT
from bootstrap.interventions.weight_decay import WeightDecay
from bootstrap.models import PreActResNet18, SmallCNN
from bootstrap.optimizers import SGD
from bootstrap.plan import plan_pair
from bootstrap.pretrained import write_pretrained
from bootstrap.ranks import ALONE
from bootstrap.recipe import Recipe
from bootstrap.records import Record
from bootstrap.train import train

RECIPE = Recipe(
    model=SmallCNN(width=4),
    optimizer=SGD(lr=0.05, momentum=0.9),
    augmentation=CropFlip(padding_px=2),
    n_steps=4,
    batch_size=16,
    n_test_curve=64,
    every_step=True,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A choice at the strength that changes nothing, at a millionth of its default, and at full.

    `tiny` is None where the strength is not continuous. `moves`: so little changes float32 weights,
    rather than to be lost in the rounding of gradients.
    `trains`: at full strength the weights become others.
    `beside`: choices that change no byte, but provide what it needs. `deep`: the full one for DEEP.
    """

    null: Choice
    full: Choice
    tiny: Choice | None = None
    moves: bool = True
    trains: bool = True
    beside: tuple[Choice, ...] = ()
    deep: Choice | None = None


DEEP = PreActResNet18(width=4)
FOLDER = tempfile.TemporaryDirectory()
atexit.register(FOLDER.cleanup)


def write_scores(rng):
    """A file of scores of 2,048 samples, drawn."""
    path = Path(FOLDER.name) / "scores.npz"
    found = Scores(scores=rng.random((1, 2_048)), reference=rng.random((1, 256)))
    path.write_bytes(found.to_bytes())
    return str(path)


def write_weights(model):
    """A checkpoint of a model's weights as they are drawn."""
    path = Path(FOLDER.name) / f"{type(model).__name__}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        built = model.build((8, 8, 3), 10)
    return str(write_pretrained(path, built, replace(RECIPE, model=model), {"method": "none"}))


SCORES = write_scores(np.random.default_rng(0))
GROUPS = Spurious(size_px=0)
PRETRAINED = {model: write_weights(model) for model in (RECIPE.model, DEEP)}

CASES = {
    "cutout": Case(null=Cutout(size_px=0), full=Cutout(size_px=4)),
    "mixup": Case(null=Mixup(probability=0.0), full=Mixup()),
    "cutmix": Case(null=Cutmix(probability=0.0), full=Cutmix(probability=1.0)),
    "input_noise": Case(
        null=InputNoise(sigma=0.0), tiny=InputNoise(sigma=5e-8), full=InputNoise(sigma=0.1)
    ),
    "weight_noise": Case(
        null=WeightNoise(scale=0.0), tiny=WeightNoise(scale=1e-8), full=WeightNoise(scale=0.1)
    ),
    "dropout": Case(null=Dropout(p=0.0), tiny=Dropout(p=3e-7), full=Dropout(p=0.5)),
    "label_smoothing": Case(
        null=LabelSmoothing(epsilon=0.0), tiny=LabelSmoothing(epsilon=1e-7), full=LabelSmoothing()
    ),
    "flooding": Case(
        null=Flooding(level=0.0),
        tiny=Flooding(level=5e-8),
        full=Flooding(level=5.0),
        moves=False,  # no batch is below it
    ),
    "l1": Case(null=L1(strength=0.0), tiny=L1(strength=1e-11), full=L1(strength=1e-2), moves=False),
    "l2": Case(null=L2(strength=0.0), tiny=L2(strength=5e-10), full=L2(strength=0.1), moves=False),
    "weight_decay": Case(
        null=WeightDecay(strength=0.0),
        tiny=WeightDecay(strength=5e-10),
        full=WeightDecay(strength=0.1),
        moves=False,  # 1 - lr * strength is 1 in float32
    ),
    "weissi": Case(
        null=WEISSI(log_norm=0.0, direction=0.0),
        tiny=WEISSI(log_norm=5e-10, direction=1e-12),
        full=WEISSI(log_norm=0.1, direction=1e-2),
        moves=False,
    ),
    "focal": Case(null=Focal(gamma=0.0), tiny=Focal(gamma=2e-6), full=Focal()),
    "mse": Case(null=MSE(share=0.0), tiny=MSE(share=1e-6), full=MSE()),
    "gradient_penalty": Case(
        null=GradientPenalty(strength=0.0),
        tiny=GradientPenalty(strength=1e-7),
        full=GradientPenalty(strength=1.0),
    ),
    "fgm": Case(null=FGM(epsilon=0.0), tiny=FGM(epsilon=5e-7), full=FGM()),
    "fgsm": Case(null=FGSM(epsilon=0.0), tiny=FGSM(epsilon=8e-6 / 255), full=FGSM()),
    "pgd": Case(
        null=PGD(epsilon=0.0, n_moves=2),
        tiny=PGD(epsilon=8e-6 / 255, move_size=2e-6 / 255, n_moves=2),
        full=PGD(n_moves=2),
    ),
    "vat": Case(null=VAT(weight=0.0), tiny=VAT(weight=1e-6), full=VAT()),
    "sam": Case(null=SAM(rho=0.0), tiny=SAM(rho=5e-8), full=SAM(rho=0.5)),
    "logit_adjustment": Case(
        null=LogitAdjustment(tau=0.0), tiny=LogitAdjustment(tau=1e-6), full=LogitAdjustment()
    ),
    "logit_adjustment_post_hoc": Case(
        null=LogitAdjustmentPostHoc(tau=0.0), full=LogitAdjustmentPostHoc(), trains=False
    ),
    "long_tail": Case(null=LongTail(rho=1.0), full=LongTail(rho=10.0)),
    "spurious": Case(null=Spurious(size_px=0), full=Spurious()),
    "superclasses": Case(
        null=Superclasses(), full=Superclasses(groups=((2, 3, 4, 5, 6, 7), (0, 1, 8, 9)))
    ),
    "label_noise": Case(null=LabelNoise(rate=0.0), full=LabelNoise(rate=0.5)),
    "label_noise_train_and_test": Case(
        null=LabelNoiseTrainAndTest(rate=0.0), full=LabelNoiseTrainAndTest(rate=0.5)
    ),
    "forgetting_events": Case(null=ForgettingEvents(), full=ForgettingEvents(), trains=False),
    "probe_flips": Case(null=ProbeFlips(), full=ProbeFlips(), trains=False),
    "robust_error": Case(
        null=RobustError(n=8, n_moves=1), full=RobustError(n=8, n_moves=1), trains=False
    ),
    "calibration": Case(null=Calibration(), full=Calibration(), trains=False),
    "class_weights": Case(
        null=ClassWeights(power=0.0), tiny=ClassWeights(power=1e-6), full=ClassWeights()
    ),
    "jacobian_penalty": Case(
        null=JacobianPenalty(strength=0.0),
        tiny=JacobianPenalty(strength=1e-8),
        full=JacobianPenalty(strength=1.0),
    ),
    "spectral_penalty": Case(
        null=SpectralPenalty(strength=0.0),
        tiny=SpectralPenalty(strength=1e-8),
        full=SpectralPenalty(strength=0.1),
    ),
    "spectral_normalisation": Case(
        null=SpectralNormalisation(strength=0.0),
        tiny=SpectralNormalisation(strength=1e-6),
        full=SpectralNormalisation(),
    ),
    "error_by_group": Case(
        null=ErrorByGroup(), full=ErrorByGroup(), trains=False, beside=(GROUPS,)
    ),
    "error_by_environment": Case(
        null=ErrorByEnvironment(), full=ErrorByEnvironment(), trains=False, beside=(GROUPS,)
    ),
    "random_pruning": Case(null=RandomPruning(keep=1.0), full=RandomPruning()),
    "el2n": Case(null=EL2N(scores=SCORES, keep=1.0), full=EL2N(scores=SCORES)),
    "grand": Case(
        null=GraNd(scores=SCORES, keep=1.0), full=GraNd(scores=SCORES, keep=0.7, skip=0.1)
    ),
    "grand_last_layer": Case(
        null=GraNdLastLayer(scores=SCORES, keep=1.0), full=GraNdLastLayer(scores=SCORES)
    ),
    "forgetting_score": Case(
        null=ForgettingScore(scores=SCORES, keep=1.0),
        full=ForgettingScore(scores=SCORES, hardest=False),
    ),
    "pretraining": Case(
        null=Pretraining(weights=PRETRAINED[RECIPE.model], strength=0.0),
        tiny=Pretraining(weights=PRETRAINED[RECIPE.model], strength=1e-6),
        full=Pretraining(weights=PRETRAINED[RECIPE.model]),
        deep=Pretraining(weights=PRETRAINED[DEEP]),
    ),
}


def few_steps(data, *choices, n=40, world_n=None, recipe=RECIPE, flags=FLAGS, evaluates=True):
    """The state and the rows (`wall_s` and `extra` aside) of a run of one world with N = n."""
    recipe = replace(recipe, choices=choices)
    plan = plan_pair(recipe, data, Path("nowhere"), n_samples=(n,), flags=flags)
    with closing(plan.pool("stream")) as pool:
        run = SeedRun(plan=plan, seed=0, pool=pool, control=Control())
        task, state = run.task(world_n or n, (n,)), run.state()
        if not evaluates:
            task = replace(task, grid=frozenset(), recipe=replace(recipe, every_step=False))
        rows = []
        for record in train(task, state, until_step=recipe.n_steps):
            mine = record.for_world(f"real-n{n}") if isinstance(record, Record) else record
            rows.append({k: v for k, v in mine.to_json().items() if k not in ("wall_s", "extra")})
    return state, rows


def weights(state):
    """Every weight and buffer as one vector."""
    return torch.cat([t.detach().flatten().double() for t in state.model.state_dict().values()])


def context_of(choice, model=None, step=0, seed=0, n_classes=10, batch_size=16, **changes):
    """Where `choice` stands in a run of images of 8 px."""
    device, model = torch.device("cpu"), model or nn.Linear(1, 1)
    setting = Setting(
        image_shape=(8, 8, 3),
        n_classes=n_classes,
        pool_n_samples=64,
        n_steps=10,
        batch_size=batch_size,
        device=device,
    )
    known = {
        "step": step,
        "n_steps": 10,
        "seed": seed,
        "lr": 0.1,
        "name": type(choice).__qualname__,
        "state": choice.init_state(model, setting),
        "model": choice.wrap_model(model, setting),
        "normalise": Normalisation(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.5])),
        "ranks": ALONE,
        "device": device,
    }
    return StepContext(**(known | changes))
