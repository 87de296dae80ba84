"""Lost shards of a generated data set, made again byte for byte from what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from bootstrap.dataset import collect_manifest
from bootstrap.errors import BootstrapError, ConfigurationError, DataError
from bootstrap.execution import Flags
from bootstrap.files import canonical_json, sha256_hex
from bootstrap.shards import (
    Manifest,
    ShardRecord,
    build_shard,
    publish_shard,
    read_manifest,
    record_path,
)
from generators.build import build_labelling
from generators.sample import DiffusionSpec
from generators.toy import ToySource
from generators.write import Labelling, Source, label_and_sample, refuse_constant


def remake_lost_shards(folder: Path, shipped: Path, teacher: Path) -> Iterator[str]:
    """Make the shards that the manifest lists and that have no commit record; yields their names.

    `shipped` is the folder of the package's own weights. DataError, before that shard is written,
    if it cannot be made here or would have other bytes.
    """
    manifest = read_manifest(folder)
    lost = [record for record in manifest.shards if not record_path(folder, record).exists()]
    makers: dict[str, tuple[Source, Labelling]] = {}
    for record in lost:
        key = canonical_json(record.provenance)
        if key not in makers:
            makers[key] = _rebuild(folder, record, manifest, shipped, teacher)
        _remake(folder, record, *makers[key])
        yield record.name
    collect_manifest(
        folder,
        name=manifest.name,
        image_shape=manifest.image_shape,
        class_names=manifest.class_names,
        label_source=manifest.label_source,
        generator=manifest.generator,
    )


def _rebuild(
    folder: Path, record: ShardRecord, manifest: Manifest, shipped: Path, teacher: Path
) -> tuple[Source, Labelling]:
    """The source and the labelling that made a shard.

    DataError naming the command to run if they cannot be had here.
    """
    try:
        source = build_recorded_source(record.provenance, shipped)
        labels = record.provenance["labels"]["mode"]
        flags = Flags(**record.provenance["execution"]) if labels != "conditional" else None
        labelling = build_labelling(labels, teacher, flags) if flags else Labelling()
        provenance = {**source.provenance(), "labels": labelling.provenance()}
        differing = [k for k, value in record.provenance.items() if provenance.get(k) != value]
        if differing:
            raise ConfigurationError(f"other {', '.join(differing)} here")
        if (source.image_shape, source.class_names) != (manifest.image_shape, manifest.class_names):
            raise ConfigurationError("its images or classes are not those of the manifest")
    except (BootstrapError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / record.name} cannot be made again from its manifest ({error});"
            f" run {_command(record.provenance)} that made it again"
        ) from error
    return source, labelling


def build_recorded_source(provenance: dict[str, Any], shipped: Path) -> Source:
    """The source with this provenance; ConfigurationError or KeyError if that does not say enough.

    Weights are looked for among the shipped ones only.
    """
    kind = provenance["source"]
    if kind == "toy":
        return ToySource(**{field.name: provenance[field.name] for field in fields(ToySource)})
    if kind != "diffusion":
        raise ConfigurationError(f"source {kind!r} is not one that a manifest describes")
    flags = Flags(**provenance["execution"])
    flags.apply()
    weights = str(shipped / Path(provenance["weights"]).name)
    spec = DiffusionSpec(weights=weights, seed=provenance["seed"], **provenance["sampler"])
    return spec.build(shipped, flags)


def _command(provenance: dict[str, Any]) -> str:
    if provenance.get("source") == "import":
        return f"the `deep-bootstrap import {provenance.get('kind')}` command"
    return "the `deep-bootstrap generate` command"


def _remake(folder: Path, record: ShardRecord, source: Source, labelling: Labelling) -> None:
    ids = np.arange(record.first_id, record.stop_id)
    columns = label_and_sample(source, ids, labelling, lambda n: None)
    refuse_constant(columns)
    n_classes = len(source.class_names)
    sha256 = sha256_hex(build_shard(columns, n_classes))
    if sha256 != record.sha256:
        raise DataError(
            f"{folder / record.name}: made again it has other bytes ({sha256}, not"
            f" {record.sha256}); make the data set in another folder"
        )
    publish_shard(folder, record.split, record.index, columns, n_classes, record.provenance)
