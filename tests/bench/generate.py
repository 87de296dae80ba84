"""How fast are images drawn, and why? `make bench-generate`: ours against diffusers' pipelines.

Rows separate the two ways to be fast: fewer evaluations of a network, and a cheaper evaluation.
The seconds of one step are measured over a few steps, the rest is multiplied out. Weights are
random: speed does not depend on them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from bootstrap.environment import hardware
from bootstrap.execution import Flags, resolve_flags
from generators.denoiser import Denoiser, DenoiserConfig, build_denoiser
from generators.sample import SAMPLE_BATCH, SamplerConfig, noise_of_ids, solve, to_uint8
from tests.bench.speed import median_s


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    n_steps: int = 4
    """of our sampler"""
    n_calls: int = 5
    device: str = "auto"


@dataclass(frozen=True)
class Row:
    """Seconds of one evaluation on a batch, and how many of them an image takes."""

    name: str
    flags: Flags
    step_s: float
    nfe: int

    @property
    def images_per_s(self) -> float:
        """Finished images a second."""
        return SAMPLE_BATCH / (self.step_s * self.nfe)


def build_plain_unet(config: DenoiserConfig) -> UNet2DModel:
    """Our network as diffusers users have it: no folding, no classes, the same widths."""
    height, width, channels = config.image_shape
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.widths,
        layers_per_block=config.n_layers,
        down_block_types=("DownBlock2D",) * len(config.widths),
        up_block_types=("UpBlock2D",) * len(config.widths),
        norm_num_groups=config.norm_groups,
        add_attention=False,
    )


def prepare(network: Any, flags: Flags) -> Any:
    """On the device, in eval mode, compiled if asked; as shipped otherwise."""
    torch._dynamo.reset()
    network = network.to(flags.torch_device).eval().requires_grad_(False)
    if flags.compiled:
        network = network.to(memory_format=torch.channels_last)
        network.compile(dynamic=False)
    return network


def pipeline_step_s(pipeline: Any, flags: Flags, n_calls: int) -> float:
    """Seconds of one step of a pipeline: what four more steps cost, over four."""
    pipeline.set_progress_bar_config(disable=True)

    def call(n: int) -> None:
        with flags.autocast():
            pipeline(batch_size=SAMPLE_BATCH, num_inference_steps=n, output_type="np")

    call(1)
    short, long = (median_s(lambda n=n: call(n), n_calls) for n in (1, 5))  # type: ignore[misc]
    return (long - short) / 4


def ours_step_s(denoiser: Denoiser, config: SamplerConfig, flags: Flags, n_calls: int) -> float:
    """Seconds of one evaluation with all that an image needs: noise, labels, uint8."""
    device = flags.torch_device
    ids, labels = np.arange(SAMPLE_BATCH), torch.zeros(SAMPLE_BATCH, dtype=torch.int64)

    def call() -> None:
        noise = noise_of_ids(ids, np.zeros_like(ids), denoiser.config.image_shape, seed=0)
        x = solve(denoiser, torch.from_numpy(noise).to(device), labels.to(device), config, flags)
        to_uint8(x)

    return median_s(call, n_calls) / config.nfe


def main() -> None:
    """Print the table and the ratios."""
    options = tyro.cli(Options, prog="make bench-generate")
    ours = resolve_flags(options.device, "auto", "on", family="denoiser")
    ours.apply()
    shipped = replace(ours, precision="fp32", compiled=False)
    eager = replace(ours, compiled=False)
    config = SamplerConfig(solver="euler", n_steps=options.n_steps)
    print(f"{hardware(ours.device)}, torch {torch.__version__}, {ours.n_threads} threads")
    print(f"batch {SAMPLE_BATCH}, widths {DenoiserConfig().widths}, seconds are of one evaluation")
    print(f"{'':34} {'execution':>14} {'s':>7} {'NFE':>5} {'images/s':>9}")
    started, rows = time.perf_counter(), []
    for flags in (shipped, ours):
        unet = prepare(build_plain_unet(DenoiserConfig()), flags)
        ddpm = DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
        rows.append(Row("DDPMPipeline", flags, pipeline_step_s(ddpm, flags, options.n_calls), 1000))
        show(rows[-1])
        ddim = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
        rows.append(Row("DDIMPipeline", flags, pipeline_step_s(ddim, flags, options.n_calls), 50))
        show(rows[-1])
    for flags in (shipped, eager, ours):
        denoiser = prepare(build_denoiser(DenoiserConfig(), seed=0), flags)
        step_s = ours_step_s(denoiser, config, flags, options.n_calls)
        for nfe in (50, config.nfe):
            rows.append(Row(f"ours, 2x2 folded, {nfe} steps", flags, step_s, nfe))
            show(rows[-1])
    ddpm_s, ddim_s, fast = rows[0].images_per_s, rows[1].images_per_s, rows[-1].images_per_s
    print(f"ours / DDPMPipeline as shipped: {fast / ddpm_s:.0f}x, / DDIM: {fast / ddim_s:.0f}x")
    print(f"of it, cheaper evaluations: {rows[0].step_s / rows[-1].step_s:.1f}x,")
    print(f"  compiled / eager bf16 of our network: {rows[-3].step_s / rows[-1].step_s:.2f}x")
    print(f"measured in {time.perf_counter() - started:.0f} s")


def show(row: Row) -> None:
    """One line of the table."""
    mode = f"{row.flags.precision} {'compiled' if row.flags.compiled else 'eager'}"
    print(
        f"{row.name:34} {mode:>14} {row.step_s:7.3f} {row.nfe:5} {row.images_per_s:9.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
