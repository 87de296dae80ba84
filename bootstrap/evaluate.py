"""Scores of a model on a fixed set of images: error, soft-error, cross-entropy.

Changes nothing in the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bootstrap.batch import Batch, Normalisation, to_unit_range
from bootstrap.execution import Flags
from bootstrap.interventions import Forward, Scored
from bootstrap.ranks import ALONE, Ranks
from bootstrap.records import ImageScores, Scores

CHUNK = 256  # images a forward pass; the last one is padded, so that shapes never change


@dataclass(frozen=True)
class PerImage:
    """Per image, float64: is it wrong, 1 - probability of its label, cross-entropy in nats.

    And the logits, float32, and the class that has the highest.
    """

    error: Float[Tensor, " n"]
    soft_error: Float[Tensor, " n"]
    loss: Float[Tensor, " n"]
    logits: Float[Tensor, "n classes"]
    predicted: Int[Tensor, " n"]

    def mean(self, n: int | None = None) -> Scores:
        """Means over the first `n` images, or all."""
        return Scores(
            error=float(self.error[:n].mean()),
            soft_error=float(self.soft_error[:n].mean()),
            loss=float(self.loss[:n].mean()),
        )

    def scored(self, batch: Batch) -> Scored:
        """What choices are told of the images of `batch`, of which these are the scores."""
        return Scored(
            images=batch.images,
            labels=batch.labels,
            logits=self.logits,
            predicted=self.predicted,
            ids=batch.ids,
            columns=batch.columns,
        )

    def images(self) -> ImageScores:
        """The scores of each image, as they are saved."""
        probability = (-self.loss).exp().half()  # of a small p, 1 - soft_error has no digits
        return ImageScores(
            probability=probability.cpu().numpy(), correct=(self.error == 0).cpu().numpy()
        )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batch: Batch,
    normalise: Normalisation,
    flags: Flags,
    chunk: int = CHUNK,
    ranks: Ranks = ALONE,
    forward: Forward | None = None,
) -> PerImage:
    """Score every image of `batch` in eval mode; the model is left in the mode it was in.

    Several `ranks` score a share each, and all have all scores. `forward` makes other logits than
    the model itself.
    """
    if len(batch) < ranks.n:
        ranks = ALONE  # too few to share: each scores them all
    own = batch.rows(ranks.rows)
    was_training = model.training
    model.eval()
    logits = []
    for start in range(0, len(own), chunk):
        images = own.images[start : start + chunk]
        n = len(images)
        if n < chunk:
            images = torch.cat([images, images[:1].expand(chunk - n, -1, -1, -1)])
        with flags.autocast():
            logits.append((forward or model)(normalise(to_unit_range(images)))[:n].float())
    model.train(was_training)
    every = ranks.gather(torch.cat(logits).T, len(batch)).T.contiguous()
    return score(every, batch.labels)


def score(logits: Float[Tensor, "n classes"], labels: Tensor) -> PerImage:
    """Error, soft-error and loss of each row; in float64 from float32 logits."""
    log_p = logits.double().log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    predicted = logits.argmax(dim=1)
    wrong = (predicted != labels).double()
    return PerImage(
        error=wrong,
        soft_error=-torch.expm1(log_p),
        loss=-log_p,
        logits=logits,
        predicted=predicted,
    )
