"""Genotypes: which operation each edge of a random cell has. No torch.

A cell is a graph of four nodes, each the sum of its edges from all earlier ones; node 0 is the
input, the last node the output (Dong and Yang 2020, NAS-Bench-201). Edges carry an operation of the
DARTS space (Liu et al. 2019). As text: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`.
"""

from __future__ import annotations

from itertools import count

from bootstrap.errors import ConfigurationError
from bootstrap.randomness import Stream, integers

OPERATIONS = (
    "none",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "avg_pool_3x3",
    "max_pool_3x3",
)
N_NODES = 4
CELLS = (1, 5)  # per stage
WIDTHS = (16, 64)
_EDGES, _CELLS, _WIDTHS = range(3)  # first coordinate of the draws

Genotype = tuple[tuple[str, ...], ...]  # for nodes 1, 2, 3: the operation on each earlier node


def draw_genotype(seed: int) -> Genotype:
    """A uniform draw from the genotypes whose output depends on the input."""
    n_edges = N_NODES * (N_NODES - 1) // 2
    for attempt in count():
        drawn = integers(
            len(OPERATIONS), seed, Stream.ARCHITECTURE, _EDGES, attempt, n=n_edges
        ).tolist()
        names = iter(OPERATIONS[index] for index in drawn)
        genotype = tuple(tuple(next(names) for _ in range(node)) for node in range(1, N_NODES))
        if live_edges(genotype):
            break
    return genotype


def draw_size(seed: int, choices: tuple[int, int]) -> int:
    """One of the two CELLS or WIDTHS."""
    purpose = _CELLS if choices == CELLS else _WIDTHS
    return choices[int(integers(2, seed, Stream.ARCHITECTURE, purpose, n=1)[0])]


def format_genotype(genotype: Genotype) -> str:
    """The text that `parse_genotype` reads."""
    return "+".join(
        "|" + "".join(f"{name}~{source}|" for source, name in enumerate(node)) for node in genotype
    )


def parse_genotype(text: str) -> Genotype:
    """Read `format_genotype`; ConfigurationError if it is none, or leads nowhere."""
    genotype = tuple(
        tuple(edge.partition("~")[0] for edge in node.strip("|").split("|"))
        for node in text.split("+")
    )
    for name in (name for node in genotype for name in node):
        if name not in OPERATIONS:
            raise ConfigurationError(
                f"genotype {text!r}: unknown operation {name!r}; there are: {', '.join(OPERATIONS)}"
            )
    if format_genotype(genotype) != text or [len(node) for node in genotype] != [1, 2, 3]:
        raise ConfigurationError(
            f"genotype {text!r} must be written |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        )
    if not live_edges(genotype):
        raise ConfigurationError(f"genotype {text!r} has no path from its input to its output")
    return genotype


def live_edges(genotype: Genotype) -> tuple[tuple[int, int, str], ...]:
    """(node, source, operation) of the edges on a path from input to output, in order of use."""
    edges = [
        (node, source, name)
        for node, names in enumerate(genotype, start=1)
        for source, name in enumerate(names)
        if name != "none"
    ]
    reached, needed = {0}, {len(genotype)}
    for node, source, _ in edges:
        if source in reached:
            reached.add(node)
    for node, source, _ in reversed(edges):
        if node in needed:
            needed.add(source)
    return tuple(edge for edge in edges if edge[1] in reached and edge[0] in needed)
