"""The same run as a plain PyTorch loop: the baseline of `make bench-pair`.

Organised as the paper's published code is: a Dataset of PIL images transformed one by one in
loader workers, full evaluations on a dense schedule, fp32, eager. Where that code does more than it
must (a second test set, pixels to tensors and back before each crop), this does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import VisionDataset

from bootstrap.records import Scores
from bootstrap.shards import Columns, Manifest

LR, MOMENTUM = 0.1, 0.9
BATCHES_PER_LR_STEP = 390
TEST_BATCH = 256


def evaluated_steps(n_steps: int) -> list[int]:
    """The published schedule: every 64th step, every 8th before 2,048, every 4th before 1,024."""
    return [
        step
        for step in range(n_steps)
        if step % (4 if step < 1_024 else 8 if step < 2_048 else 64) == 0
    ]


class ImagesInMemory(VisionDataset):
    """Images uint8 (n, height, width, channel), each made a PIL image and transformed when read."""

    def __init__(self, columns: Columns, transform: transforms.Compose) -> None:
        super().__init__(root=None, transform=transform)
        self.images = columns.images
        self.labels: list[int] = columns.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


@dataclass
class PlainLoop:
    """A model, its optimiser and its loaders."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: CosineAnnealingLR
    train_loader: DataLoader
    test_loader: DataLoader
    device: torch.device
    step: int = 0

    def steps(self) -> Iterator[None]:
        """Train for ever, a step at a time; the loader is started anew for each pass."""
        while True:
            for images, labels in self.train_loader:
                self.model.train()
                images, labels = self.to_device(images), self.to_device(labels)
                loss = cross_entropy(self.model(images), labels)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.step += 1
                if self.step % BATCHES_PER_LR_STEP == 0:
                    self.scheduler.step()
                yield

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
        """Mean error, soft-error and loss over a loader."""
        self.model.eval()
        n, sums = 0, np.zeros(3)
        for images, labels in batches:
            images, labels = self.to_device(images), self.to_device(labels)
            logits = self.model(images)
            p_correct = logits.softmax(dim=1).gather(1, labels[:, None])
            sums += (
                (logits.argmax(dim=1) != labels).sum().item(),
                (1 - p_correct).sum().item(),
                cross_entropy(logits, labels, reduction="sum").item(),
            )
            n += len(labels)
        return Scores(error=sums[0] / n, soft_error=sums[1] / n, loss=sums[2] / n)

    def evaluate_all(self) -> tuple[Scores, Scores]:
        """Test images, then the training images: augmented, shuffled, whole batches only."""
        return self.evaluate(self.test_loader), self.evaluate(self.train_loader)

    @property
    def n_images_evaluated(self) -> int:
        """Images a full evaluation."""
        train_batch = self.train_loader.batch_size or 1
        return len(self.test_loader.dataset) + train_batch * len(self.train_loader)  # type: ignore[arg-type]

    def to_device(self, x: Tensor) -> Tensor:
        """On the device; the loaders pin memory where that helps."""
        return x.to(self.device, non_blocking=True)


def build_plain_loop(
    model: nn.Module,
    train: Columns,
    test: Columns,
    manifest: Manifest,
    device: torch.device,
    *,
    n_steps: int,
    batch_size: int,
    n_workers: int,
) -> PlainLoop:
    """The baseline for a run of `n_steps` on these training and test images."""
    model = model.to(device)
    as_tensor = [transforms.ToTensor(), transforms.Normalize(manifest.mean, manifest.deviation)]
    height, width, _ = manifest.image_shape
    crop_flip = [
        transforms.RandomCrop((height, width), padding=4),
        transforms.RandomHorizontalFlip(),
    ]
    train_set = ImagesInMemory(train, transforms.Compose([*crop_flip, *as_tensor]))
    test_set = ImagesInMemory(test, transforms.Compose(as_tensor))
    pinned = device.type == "cuda"
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    return PlainLoop(
        model=model,
        optimizer=optimizer,
        scheduler=CosineAnnealingLR(optimizer, max(1, n_steps // BATCHES_PER_LR_STEP)),
        train_loader=DataLoader(
            train_set,
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=n_workers,
            pin_memory=pinned,
        ),
        test_loader=DataLoader(
            test_set, batch_size=TEST_BATCH, num_workers=n_workers, pin_memory=pinned
        ),
        device=device,
    )
