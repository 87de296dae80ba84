"""generate: images and labels into a data set; what is there already is not made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags
from bootstrap.files import check_space
from bootstrap.options import GenerateOptions
from bootstrap.presets import build_preset
from bootstrap.progress import bar_settings
from bootstrap.shards import read_manifest
from bootstrap.signals import StopRequest
from bootstrap.worlds import BLOCK
from generators.build import (
    build_labelling,
    build_source,
    images_per_s,
    n_bytes_of,
    refuse_other_images,
)
from generators.card import write_card
from generators.missing import missing_shards, tolerated_keys
from generators.toy import ToySource
from generators.write import Job, MakeAll, generate, make_in_turn

TEACHER = "teacher-v1.safetensors"
SLOW_MINUTES = 20.0
MIN_ESTIMATED_N = 512  # fewer images are made before they are timed
Say = Callable[[str], None]


def run_generate(options: GenerateOptions, shipped: Path, say: Say) -> Iterator[str]:
    """Bring a data set to the sizes that were asked for; yields results, and says progress."""
    sizes = sizes_of(options)
    flags = options.execution.resolve("denoiser", sum(sizes.values()))
    job, make_all = build_job(options, shipped, flags), who_makes(options, flags)
    source, labelling, folder = job.source, job.labelling, job.folder
    mixing: dict[str, Any] = {
        "accept_new_bytes": options.accept_new_bytes,
        "allow_mixed_devices": options.allow_mixed_devices,
    }
    shards = missing_shards(folder, sizes, job.provenance(), tolerated_keys(**mixing))
    n = sum(len(ids) for _, _, ids in shards)
    if n == 0 and not options.dry_run:
        # collect the records again: a kill may have come before that
        before = read_manifest(folder) if (folder / "manifest.json").exists() else None
        manifest = generate(source, folder, sizes, labelling, **mixing)
        if before is None or manifest != before or not (folder / "README.md").exists():
            write_card(folder, manifest)
        held = ", ".join(f"{split} {manifest.n(split):,}" for split in sizes)
        yield f"{folder}: complete, {held}; nothing to do"
        return
    check_space(folder, n_bytes_of(n, source.image_shape))
    say(f"{folder}: {n:,} images to make ({flags.describe()})")
    if n >= MIN_ESTIMATED_N and (options.ray is None or options.dry_run):
        rate = images_per_s(source, labelling)
        say(f"about {rate:.0f} images/s, {n / rate / 60:.1f} minutes")
        if n / rate > 60 * SLOW_MINUTES:
            say(f"that is more than {SLOW_MINUTES:.0f} minutes; `--preset quick` makes 13,312")
    if options.dry_run:
        return

    started = time.perf_counter()
    with StopRequest(say) as stop, tqdm(total=n, unit="images", **bar_settings()) as bar:
        manifest = generate(
            source,
            folder,
            sizes,
            labelling,
            **mixing,
            make_all=make_all,
            on_images=bar.update,
            is_interrupted=stop.is_requested,
        )
    write_card(folder, manifest)
    if isinstance(source, ToySource):
        yield f"Bayes error of the toy distribution: {source.bayes_error():.3f}"
    seconds = time.perf_counter() - started
    yield (
        f"{folder}: {n:,} images in {seconds:.0f} s, {n / seconds:.0f} images/s;"
        f" see {folder / 'README.md'}"
    )


def sizes_of(options: GenerateOptions) -> dict[str, int]:
    """Images of each split; the stream in whole blocks."""
    if options.n is not None and options.n < 1:
        raise ConfigurationError(f"--n {options.n}: give at least one stream image")
    spec = build_preset(options.preset).data
    n_stream = -(-(options.n or spec.n_stream) // BLOCK) * BLOCK
    of_pretraining = {"pretrain": options.n_pretrain} if options.n_pretrain else {}
    return {**of_pretraining, **spec.sizes, "stream": n_stream}


def build_job(options: GenerateOptions, shipped: Path, flags: Flags) -> Job:
    """Which images go where, and who labels them; `shipped` holds the package's weights."""
    spec = build_preset(options.preset).data
    asked = options.source
    labels = options.labels or ("conditional" if asked else spec.labels)
    if options.pipeline is not None:
        if asked:
            raise ConfigurationError("--pipeline and --source: give one of them")
        asked = f"pipeline(folder={str(options.pipeline)!r})"
        labels = options.labels or "teacher"
    source = build_source(asked or spec.source, shipped, flags)
    folder = options.data or options.out / (source.name if asked else spec.name)
    labelling = build_labelling(labels, options.teacher or shipped / TEACHER, flags)
    refuse_other_images(labelling, source)
    return Job(source=source, labelling=labelling, folder=folder)


def who_makes(options: GenerateOptions, flags: Flags) -> MakeAll:
    """This process, or workers on Ray."""
    if options.ray is None:
        if options.workers is not None:
            raise ConfigurationError("--workers is for --ray; add `--ray local`")
        return make_in_turn
    from generators.cluster import RayWorkers

    return RayWorkers(address=options.ray, flags=flags, n_workers=options.workers).make_all
