"""Networks of one repeated cell with operations of the DARTS space.

The network around the cell is NAS-Bench-201's (Dong and Yang 2020, figure 1), the operations are
those of Liu et al. 2019, appendix A.1.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from bootstrap.models.genotype import Genotype, format_genotype, live_edges
from bootstrap.models.grouped import GroupedConv2d


class Cell(nn.Module):
    """Four nodes, each the sum of its edges; edges that cannot change the output are left out."""

    def __init__(self, genotype: Genotype, n: int) -> None:
        super().__init__()
        self.genotype = format_genotype(genotype)
        edges = live_edges(genotype)
        self.ends = [(node, source) for node, source, _ in edges]
        self.operations = nn.ModuleList(OPERATIONS[name](n) for _, _, name in edges)

    def forward(self, x: Float[Tensor, "batch n h w"]) -> Float[Tensor, "batch n h w"]:
        """The last node."""
        nodes = {0: x}
        for (node, source), operation in zip(self.ends, self.operations, strict=True):
            edge = operation(nodes[source])
            nodes[node] = nodes[node] + edge if node in nodes else edge
        return nodes[max(nodes)]

    def extra_repr(self) -> str:
        """For print(module)."""
        return self.genotype


class Reduction(nn.Module):
    """A residual block that halves the sides and doubles the channels."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(n, 2 * n, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * n),
            nn.ReLU(),
            nn.Conv2d(2 * n, 2 * n, 3, 1, 1, bias=False),
            nn.BatchNorm2d(2 * n),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(n, 2 * n, 1, bias=False)
        )

    def forward(self, x: Float[Tensor, "batch n h w"]) -> Float[Tensor, "batch n2 h2 w2"]:
        """n2 = 2 n, h2 = ceil(h / 2), w2 = ceil(w / 2)."""
        return self.shortcut(x) + self.residual(x)


def build_darts(
    n_channels: int, n_classes: int, genotype: Genotype, cells: int, width: int
) -> nn.Module:
    """Three stages of `cells` cells, widths 1, 2, 4 times `width`, a reduction between stages."""
    layers: list[nn.Module] = [
        nn.Conv2d(n_channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
    ]
    for factor in (1, 2, 4):
        if factor > 1:
            layers.append(Reduction(width * factor // 2))
        layers += [Cell(genotype, width * factor) for _ in range(cells)]
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, n_classes),
    )


def _separable(n: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.ReLU(),
        GroupedConv2d(n, n, kernel, 1, padding, dilation, groups=n, bias=False),
        nn.Conv2d(n, n, 1, bias=False),
        nn.BatchNorm2d(n),
    )


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "skip_connect": lambda n: nn.Identity(),
    "sep_conv_3x3": lambda n: nn.Sequential(_separable(n, 3), _separable(n, 3)),
    "sep_conv_5x5": lambda n: nn.Sequential(_separable(n, 5), _separable(n, 5)),
    "dil_conv_3x3": lambda n: _separable(n, 3, dilation=2),
    "dil_conv_5x5": lambda n: _separable(n, 5, dilation=2),
    "avg_pool_3x3": lambda n: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "max_pool_3x3": lambda n: nn.MaxPool2d(3, 1, 1),
}
