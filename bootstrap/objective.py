"""What a step descends: choices wrapped around the loss, its gradient and the update.

Without choices this is the cross-entropy of the labels. The first choice wraps innermost.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss, one_hot

from bootstrap.batch import Batch
from bootstrap.batch_norm import local_statistics
from bootstrap.execution import Flags
from bootstrap.interventions import (
    Forward,
    Gradient,
    GradientFn,
    Inputs,
    LossFn,
    SampleLossFn,
    UpdateFn,
)
from bootstrap.ranks import Ranks
from bootstrap.stacked import Seat
from bootstrap.worlds import STREAM_START
from bootstrap.wrapping import Wrapping


def build_inputs(
    x: Tensor, batch: Batch, n_classes: int, wrapping: Wrapping, ranks: Ranks
) -> Inputs:
    """This rank's share of a batch, x normalised, after what choices do to the whole of it."""
    targets = one_hot(batch.labels, n_classes).float() if wrapping else batch.labels
    inputs = Inputs(
        x=x,
        targets=targets,
        labels=batch.labels,
        ids=batch.ids,
        index=batch.ids - STREAM_START,
        columns=batch.columns,
    )
    for choice, context in wrapping:
        inputs = choice.wrap_inputs(inputs, context)
    if ranks.n > 1:
        inputs = inputs.rows(ranks.share(len(batch)))
    return replace(inputs, x=inputs.x.contiguous(memory_format=torch.channels_last))


def build_loss(wrapping: Wrapping, ranks: Ranks) -> LossFn:
    """The mean loss of the batch of all ranks."""
    if not wrapping:
        return lambda forward, inputs: ranks.mean(cross_entropy(forward(inputs.x), inputs.labels))
    losses: SampleLossFn = cross_entropies
    for choice, context in wrapping:
        losses = choice.wrap_sample_loss(losses, context)

    def mean(forward: Forward, inputs: Inputs) -> Tensor:
        return ranks.mean(mean_of(losses(forward, inputs)))

    loss: LossFn = mean
    for choice, context in wrapping:
        loss = choice.wrap_loss(loss, context)
    return loss


def cross_entropies(forward: Forward, inputs: Inputs) -> Tensor:
    """(n,) nats; of one-hot targets the bits are those of torch's cross-entropy."""
    return -(inputs.targets * forward(inputs.x).log_softmax(dim=1)).sum(dim=1)


def mean_of(losses: Tensor) -> Tensor:
    """Their mean, added in the order in which torch's mean cross-entropy adds."""
    return nll_loss(-losses[:, None], torch.zeros_like(losses, dtype=torch.int64))


def build_gradient(
    model: nn.Module, wrapping: Wrapping, flags: Flags, ranks: Ranks, seat: Seat | None
) -> GradientFn:
    """What leaves the gradient of the batch of all ranks in the parameters."""
    loss_fn = build_loss(wrapping, ranks)

    def differentiate(inputs: Inputs) -> Gradient:
        if seat is not None:
            return Gradient(*seat.differentiate(model, inputs.x, inputs.targets))
        passes: list[Tensor] = []

        def forward(x: Tensor) -> Tensor:
            with flags.autocast():
                logits = model(x)
            passes.append(logits.detach())
            return logits.float()

        loss = loss_fn(forward, inputs)
        loss.backward()
        if ranks.n > 1:
            ranks.average([*gradients_of(model), *local_statistics(model)])
        return Gradient(loss.detach(), passes[0])

    gradient: GradientFn = differentiate
    for choice, context in wrapping:
        gradient = choice.wrap_gradient(gradient, context)
    return gradient


def gradients_of(model: nn.Module) -> list[Tensor]:
    """Those that there are."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def build_update(optimizer: torch.optim.Optimizer, wrapping: Wrapping) -> UpdateFn:
    """What changes the weights by their gradient."""

    def step() -> None:
        optimizer.step()

    update: UpdateFn = step
    for choice, context in wrapping:
        update = choice.wrap_update(update, context)
    return update
