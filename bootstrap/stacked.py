"""Several runs take a step together: one forward and backward pass over stacked weights.

A model too small to fill a device leaves most of it idle. Each run keeps its own loop, in a thread;
only one of the threads is awake at a time, and all meet where a gradient is needed. Nothing but the
order of additions differs from training each run on its own.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags

T = TypeVar("T")
Images = Float[Tensor, "batch channel height width"]
Labels = Int[Tensor, " batch"] | Float[Tensor, "batch classes"]  # or the classes' shares


class Stack:
    """The stacked weights of `n` models of one architecture, and where their users meet."""

    def __init__(self, n: int, flags: Flags) -> None:
        self.flags = flags
        self._n_present = n
        self._turn = threading.Condition()
        self._asked: dict[int, tuple[Images, Labels]] = {}
        self._answers: dict[int, Answer | Exception] = {}
        self._template: nn.Module | None = None
        self._tensors: dict[str, Tensor] = {}  # (n, *shape) of each parameter and buffer
        self._n = n

    @contextmanager
    def seat(self, place: int) -> Iterator[Seat]:
        """A place among the runs, for as long as it has steps to take; others wait meanwhile."""
        with self._turn:
            try:
                yield Seat(self, place)
            finally:
                self._n_present -= 1
                self._meet()

    def take(self, place: int, model: nn.Module) -> None:
        """Let `model` live in the stack: its parameters and buffers become views of it."""
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        if self._template is None:
            self._template = copy.deepcopy(model).to("meta")
            self._tensors = {
                name: t.detach().expand(self._n, *t.shape).clone() for name, t in own.items()
            }
        for name, tensor in own.items():
            view = self._tensors[name][place]
            view.copy_(tensor.detach())
            tensor.data = view

    def ask(self, place: int, x: Images, labels: Labels) -> Answer:
        """Wait until every run that is present has asked; then all have their answers."""
        self._asked[place] = (x, labels)
        self._meet()
        self._turn.wait_for(lambda: place in self._answers)
        answer = self._answers.pop(place)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _meet(self) -> None:
        if not self._asked or len(self._asked) < self._n_present:
            return
        places = sorted(self._asked)
        asked = [self._asked.pop(place) for place in places]
        try:
            answers: Sequence[Answer | Exception] = self._differentiate(places, asked)
        except Exception as error:
            answers = [error] * len(places)
        self._answers.update(zip(places, answers, strict=True))
        self._turn.notify_all()

    def _differentiate(self, places: list[int], asked: list[tuple[Images, Labels]]) -> list[Answer]:
        """Losses, logits and gradients of the models in `places`, in one pass."""
        template, is_all = self._template, len(places) == self._n
        assert template is not None
        tensors = self._tensors if is_all else {k: t[places] for k, t in self._tensors.items()}
        names = [name for name, p in template.named_parameters() if p.requires_grad]
        weights = {name: tensors[name].detach().requires_grad_() for name in names}
        others = {name: tensor for name, tensor in tensors.items() if name not in weights}
        x, labels = (torch.stack(column) for column in zip(*asked, strict=True))

        def model(weights: dict[str, Tensor], others: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(template, {**weights, **others}, (x,))

        try:
            with self.flags.autocast():
                logits = torch.vmap(model)(weights, others, x).float()
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ConfigurationError(
                f"the model cannot be stacked ({error}); use --replicas 1"
            ) from error
        targets = labels.transpose(1, 2) if labels.is_floating_point() else labels
        losses = cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(dim=1)
        gradients = torch.autograd.grad(losses.sum(), list(weights.values()), allow_unused=True)
        if not is_all:  # batch norm has changed copies
            for name, tensor in others.items():
                self._tensors[name][places] = tensor
        return [
            Answer(
                loss=losses[row].detach(),
                logits=logits[row].detach(),
                gradients={
                    name: g[row] for name, g in zip(names, gradients, strict=True) if g is not None
                },
            )
            for row in range(len(places))
        ]


@dataclass(frozen=True)
class Answer:
    """What one run gets of a step."""

    loss: Tensor
    logits: Float[Tensor, "batch classes"]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Seat:
    """One run's place in a stack."""

    stack: Stack
    place: int

    def take(self, model: nn.Module) -> None:
        """Put the model that this run trains from now on into the stack."""
        self.stack.take(self.place, model)

    def differentiate(self, model: nn.Module, x: Images, labels: Labels) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy of a batch and its logits; gradients go to the parameters."""
        answer = self.stack.ask(self.place, x, labels)
        for name, parameter in model.named_parameters():
            parameter.grad = answer.gradients.get(name)
        return answer.loss, answer.logits


def run_stacked(jobs: Sequence[Callable[[Seat], None]], flags: Flags) -> list[Exception]:
    """Run every job in a thread, with a seat of one stack, to its end; what went wrong in them."""
    stack, errors = Stack(len(jobs), flags), list[Exception]()

    def run(place: int) -> None:
        try:
            with stack.seat(place) as seat:
                jobs[place](seat)
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(jobs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def in_groups(items: Sequence[T], n: int) -> list[Sequence[T]]:
    """The items in order, `n` at a time."""
    return [items[first : first + n] for first in range(0, len(items), n)]
