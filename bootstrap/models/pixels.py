"""A causal transformer over the colours of an image, after Image GPT (Chen et al. 2020).

As the paper fine-tunes it: a start token takes the place of the last pixel, features are averaged
over the sequence, and the head starts at zero.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Palette(nn.Module):
    """The colour number of each pixel of a normalised image, row by row.

    Each channel is cut at the quantiles 1/levels, 2/levels, ... of a standard normal; nothing is
    fitted to data.
    """

    edges: Tensor
    places: Tensor

    def __init__(self, levels: int, n_channels: int) -> None:
        super().__init__()
        normal = NormalDist()
        edges = [normal.inv_cdf(level / levels) for level in range(1, levels)]
        places = [levels**channel for channel in range(n_channels)]
        self.n_colours = levels**n_channels
        self.register_buffer("edges", torch.tensor(edges), persistent=False)
        self.register_buffer("places", torch.tensor(places).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "batch channel h w"]) -> Int[Tensor, "batch pixel"]:
        """From 0 to n_colours - 1."""
        levels = torch.bucketize(x.float().contiguous(), self.edges)
        return (levels * self.places).sum(dim=1).flatten(1)


class Block(nn.Module):
    """Causal self-attention and a GELU layer of four times the width, each after its norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "batch pixel width"]) -> Float[Tensor, "batch pixel width"]:
        """A pixel is changed by itself and earlier ones only."""
        heads = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Embedding(nn.Module):
    """Colours and positions as vectors; a start token in front, the last pixel dropped."""

    def __init__(self, n_colours: int, n_pixels: int, width: int) -> None:
        super().__init__()
        self.colour = nn.Embedding(n_colours + 1, width)  # the last one is the start token
        self.position = nn.Parameter(torch.zeros(n_pixels, width))

    def forward(self, colours: Int[Tensor, "batch pixel"]) -> Float[Tensor, "batch pixel width"]:
        """One vector for each pixel."""
        start = torch.full_like(colours[:, :1], self.colour.num_embeddings - 1)
        return self.colour(torch.cat([start, colours[:, :-1]], dim=1)) + self.position


class MeanOverPixels(nn.Module):
    """The average of a sequence."""

    def forward(self, x: Float[Tensor, "batch pixel width"]) -> Float[Tensor, "batch width"]:
        """One vector for each image."""
        return x.mean(dim=1)


def build_pixel_transformer(
    image_shape: tuple[int, int, int],
    n_classes: int,
    width: int,
    depth: int,
    heads: int,
    levels: int,
) -> nn.Module:
    """Palette, embedding, `depth` blocks, norm, mean, linear; GPT-2's initial weights."""
    palette = Palette(levels, n_channels=image_shape[2])
    head = nn.Linear(width, n_classes, bias=False)
    model = nn.Sequential(
        palette,
        Embedding(palette.n_colours, image_shape[0] * image_shape[1], width),
        *[Block(width, heads) for _ in range(depth)],
        nn.LayerNorm(width),
        MeanOverPixels(),
        head,
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    nn.init.zeros_(head.weight)
    return model
