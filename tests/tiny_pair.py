"""The smallest pair worth the name, as a recipe and as words for the command line."""

from bootstrap.models import MLP
from bootstrap.optimizers import SGD
from bootstrap.recipe import Recipe

TINY = Recipe(
    model=MLP(width=8, depth=1),
    optimizer=SGD(lr=0.05, momentum=0.9),
    n_steps=12,
    batch_size=16,
    n_test_curve=64,
)
PLAIN = ("--precision", "fp32", "--compile", "off", "--threads", "1")
COMPARE = (
    *("compare", "--preset", "smoke", "--model", "mlp(width=8, depth=1)", "--no-every-step"),
    *("--n-steps", "12", "--batch-size", "16", "--n-test-curve", "64", *PLAIN),
)
