"""Is this data set what it says it is? Reads everything, follows nothing. No torch.

What cannot be seen from one shard is checked too: ids without gaps or overlaps, no image twice, an
order in which every block looks like a draw from the whole, and the manifest's normalisation.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer, UInt, UInt64
from scipy import stats

from bootstrap.dataset import PixelSums
from bootstrap.duplicates import (
    NearDuplicate,
    block_means,
    equal_pairs,
    hash_images,
    leak_lines,
    near_duplicates,
)
from bootstrap.errors import DataError
from bootstrap.files import canonical_json, disk_errors, file_sha256
from bootstrap.problems import N_SHOWN, Problem, Report
from bootstrap.shards import (
    SPLIT_START,
    Columns,
    Manifest,
    ShardReader,
    ShardRecord,
    read_manifest,
    read_record,
    record_paths,
    split_stop,
)
from bootstrap.worlds import BLOCK, STREAM_START

log = logging.getLogger(__name__)

MIN_P_VALUE = 1e-6  # below it an order is not taken for an i.i.d. one
MIN_EXPECTED = 5  # per cell, below which chi-square is not trusted (Cochran 1954)
ANNOUNCED_BYTES = 1 << 30  # more to hash takes a second or longer, so it is announced
REPAIR = "run `deep-bootstrap verify --repair` on the folder"
REMAKE = "run the generate or import command that made the data set again"


@dataclass(frozen=True, kw_only=True)
class CheckedShard:
    """What later checks need of a shard: 9 bytes an image, 64 more for near-duplicates."""

    record: ShardRecord
    labels: UInt[np.ndarray, " n"]  # in the smallest type that holds the classes
    hashes: UInt64[np.ndarray, " n"]
    means: Float[np.ndarray, "n rows columns"] | None
    sums: PixelSums  # of what a normalisation is taken from, else of nothing


@disk_errors()
def verify_data(folder: Path, *, deep: bool = False, repair: bool = False) -> Report:
    """Check every shard of a data set and how they fit together.

    `deep` looks for near-duplicates too, which are no problem. `repair` deletes the shards and
    commit records that fail on their own, and nothing else: the command that made the data set
    then makes them again. StorageError if the disk fails: what cannot be read is not deleted.
    """
    problems: list[Problem] = []
    manifest = _read_manifest(folder, problems)
    records, failed = _read_records(folder, problems)
    checked = []
    for record in records:
        found = _check_shard(folder, record, manifest, deep=deep)
        if isinstance(found, Problem):
            problems.append(found)
            failed.add(Path(record.name).stem)
        elif found is not None:
            checked.append(found)
    for split in SPLIT_START:
        problems += _check_ids([r for r in records if r.split == split], split)
    if manifest is not None:
        for split in SPLIT_START:
            shards = [shard for shard in checked if shard.record.split == split]
            problems += _check_order(shards, split, manifest.n_classes)
        problems += _check_duplicates(checked)
        problems += _check_manifest(manifest, records)
        problems += _check_normalisation(manifest, checked)
    return Report(
        folder=folder,
        n_shards=len(records),
        n_samples={s: sum(r.n for r in records if r.split == s) for s in SPLIT_START},
        problems=tuple(problems),
        removed=_remove(folder, failed) if repair else (),
        near_duplicates=_find_near(folder, checked, manifest) if deep else None,
    )


@disk_errors()
def check_used_shards(
    folder: Path, manifest: Manifest, pool_n_samples: int, *, only_bytes: bool = False
) -> None:
    """DataError for the first shard a pair would read that is not what its record says.

    Test images among the others are warned of: sets as they are published have some.
    `only_bytes` compares size and sha256: enough where the same bytes were checked wholly before.
    """
    stream = [s for s in manifest.split("stream") if s.first_id < STREAM_START + pool_n_samples]
    used = (*manifest.split("test"), *manifest.split("reference"), *stream)
    n_bytes = sum(record.n_bytes for record in used)
    if n_bytes > ANNOUNCED_BYTES:
        log.info("%s: comparing %.1f GB with their sha256", folder, n_bytes / 1e9)
    checked = []
    for record in used:
        found = _check_shard(folder, record, None if only_bytes else manifest)
        if isinstance(found, Problem):
            raise DataError(f"{folder}: {found}")
        if found is not None:
            checked.append(found)
    if only_bytes:
        return
    for problem in _check_normalisation(manifest, checked):
        raise DataError(f"{folder}: {problem}")
    by_split = {
        split: [shard.hashes for shard in checked if shard.record.split == split]
        for split in ("test", "reference", "stream")
    }
    for line in leak_lines({split: np.concatenate(h) for split, h in by_split.items() if h}):
        log.warning("%s: %s", folder, line)


def _read_manifest(folder: Path, problems: list[Problem]) -> Manifest | None:
    """The manifest, or None and a problem if it is not one that shards can be held against."""
    try:
        manifest = read_manifest(folder)
        if len(set(manifest.class_names)) != manifest.n_classes or not manifest.class_names:
            raise ValueError("class_names must be names that differ")
    except (DataError, ValueError, TypeError) as error:
        remedy = f"remove manifest.json if there is one, then {REMAKE}"
        what = "not a manifest"
        problems.append(Problem(what=what, file="manifest.json", why=str(error), remedy=remedy))
        return None
    return manifest


def _read_records(folder: Path, problems: list[Problem]) -> tuple[list[ShardRecord], set[str]]:
    """The commit records that can be read, and the names of shards that have none."""
    records, failed = [], set()
    for split in SPLIT_START:
        names = {path.stem for path in record_paths(folder, split)}
        shards = {path.stem for path in folder.glob(f"{split}-*.h5")}
        for name in sorted(shards - names):
            what, why = "no commit record", "it was not finished, so it does not count"
            problems.append(Problem(what=what, file=f"{name}.h5", why=why, remedy=REPAIR))
            failed.add(name)
        for path in record_paths(folder, split):
            try:
                records.append(read_record(path))
            except DataError as error:
                what = "not a commit record"
                why = str(error.__cause__)
                problems.append(Problem(what=what, file=path.name, why=why, remedy=REPAIR))
                failed.add(path.stem)
    return records, failed


def _check_shard(
    folder: Path, record: ShardRecord, manifest: Manifest | None, *, deep: bool = False
) -> CheckedShard | Problem | None:
    """The shard's labels and hashes, or the first thing wrong; None if there is no manifest."""

    def problem(what: str, why: str, row: int | None = None) -> Problem:
        return Problem(what=what, file=record.name, row=row, why=why, remedy=REPAIR)

    path = folder / record.name
    if not path.is_file():
        return problem("no such file", "its commit record is there")
    n_bytes = path.stat().st_size
    if n_bytes != record.n_bytes:
        return problem("wrong size", f"{n_bytes} bytes, its record says {record.n_bytes}")
    sha256 = file_sha256(path)
    if sha256 != record.sha256:
        return problem("bytes have changed", f"sha256 {sha256}, its record says {record.sha256}")
    if manifest is None:
        return None
    labels, hashes, sums, are_all_constant = [], [], PixelSums(), True
    means: list[np.ndarray] = []
    try:
        with closing(ShardReader(folder, record, manifest.image_shape)) as reader:
            for start in range(0, record.n, BLOCK):
                rows = reader.rows(start, min(start + BLOCK, record.n))
                bad = _bad_row(rows, manifest.n_classes)
                if bad is not None:
                    return problem("impossible value", bad[1], start + bad[0])
                pixels = rows.images.reshape(len(rows), -1)
                are_all_constant &= bool((pixels == pixels[:, :1]).all())
                labels.append(rows.labels.astype(np.min_scalar_type(manifest.n_classes)))
                hashes.append(hash_images(rows.images))
                if record.split == "reference" or (record.first_id, start) == (STREAM_START, 0):
                    sums += PixelSums.of(rows.images)
                if deep:
                    means.append(block_means(rows.images))
    except DataError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno:
            raise  # the disk's fault: the bytes are those of the record
        return problem("not a shard of this data set", str(error))
    if are_all_constant:
        return problem("only constant images", "every image has one value in all its pixels")
    return CheckedShard(
        record=record,
        labels=np.concatenate(labels),
        hashes=np.concatenate(hashes),
        means=np.concatenate(means) if deep else None,
        sums=sums,
    )


def _bad_row(rows: Columns, n_classes: int) -> tuple[int, str] | None:
    """The first row that holds an impossible value, and which."""
    columns = {"label": rows.labels, **rows.extra}
    for name, column in columns.items():
        if name in ("label", "teacher_label"):
            bad = (column < 0) | (column >= n_classes)
            rule = f"not in 0..{n_classes - 1}"
        else:
            bad, rule = ~np.isfinite(column), "not finite"
        if bad.any():
            row = int(bad.argmax())
            return row, f"{name} {column[row]} of id {rows.ids[row]} is {rule}"
    return None


def _check_ids(records: list[ShardRecord], split: str) -> list[Problem]:
    """Shards of a split are numbered from 0 and their ids follow each other inside its range."""
    next_id = SPLIT_START[split]
    for index, record in enumerate(records):
        if (record.index, record.first_id) != (index, next_id):
            why = f"shard {index} should start at id {next_id}, this is the next that there is"
            return [Problem(what="a gap in the ids", file=record.name, why=why, remedy=REMAKE)]
        next_id = record.stop_id
    if next_id > split_stop(split):
        why = f"{split} ends before {split_stop(split)}"
        name = records[-1].name
        return [Problem(what="ids of another split", file=name, why=why, remedy=REMAKE)]
    return []


def _check_order(shards: list[CheckedShard], split: str, n_classes: int) -> list[Problem]:
    """Chi-square over blocks: each must look like a draw from the whole split."""
    p_above, p_below = order_p_values([shard.labels for shard in shards], n_classes)
    if min(p_above, p_below) >= MIN_P_VALUE:
        return []
    how = "more" if p_above < p_below else "less"
    why = (
        f"class counts differ between blocks of {BLOCK:,} {how} than chance allows"
        f" (chi-square p = {min(p_above, p_below):.1e})"
    )
    remedy = "`deep-bootstrap import` puts images into a random order; import them again"
    what = "not in random order"
    return [Problem(what=what, file=f"{split}-*.h5", why=why, remedy=remedy)]


def order_p_values(labels: list[Integer[np.ndarray, " n"]], n_classes: int) -> tuple[float, float]:
    """Chance that an i.i.d. order has class counts that differ more, and less, between blocks.

    (1, 1) if there are too few blocks or classes to tell. Sorted labels have the first near 0,
    labels dealt in turn the second.
    """
    of_classes = _block_counts(labels, n_classes)
    n_blocks = len(of_classes)
    group = _class_groups(of_classes.sum(axis=0), MIN_EXPECTED * n_blocks)
    n_groups = int(group.max()) + 1
    if min(n_blocks, n_groups) < 2:
        return 1.0, 1.0
    counts = np.stack([of_classes[:, group == g].sum(axis=1) for g in range(n_groups)], axis=1)
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    return float(stats.chi2.sf(statistic, freedom)), float(stats.chi2.cdf(statistic, freedom))


def _block_counts(
    labels: list[Integer[np.ndarray, " n"]], n_classes: int
) -> Int[np.ndarray, "blocks classes"]:
    """How often each class is in each whole block; `labels` of one shard after the other."""
    counts = np.zeros((sum(map(len, labels)) // BLOCK + 1, n_classes), dtype=np.int64)
    start = 0
    for column in labels:
        block = (start + np.arange(len(column))) // BLOCK
        np.add.at(counts, (block, column), 1)
        start += len(column)
    return counts[:-1]  # the last is not whole


def _class_groups(totals: Int[np.ndarray, " classes"], least: int) -> Int[np.ndarray, " classes"]:
    """The group of each class when neighbours are joined until every group has `least` members."""
    group_of, group, size = np.zeros(len(totals), dtype=np.int64), 0, 0
    for k, total in enumerate(totals):
        group_of[k] = group
        size += int(total)
        if size >= least:
            group, size = group + 1, 0
    return np.minimum(group_of, max(group - 1, 0))  # what is left joins the last whole group


def _check_duplicates(shards: list[CheckedShard]) -> list[Problem]:
    """No image may be there twice, in one split or two."""
    if not shards:
        return []
    pairs = equal_pairs([shard.hashes for shard in shards])
    starts = np.cumsum([0, *(shard.record.n for shard in shards)])
    problems = []
    for again, before in pairs[:N_SHOWN]:
        shard, row = _locate(shards, starts, int(again))
        first_shard, first_row = _locate(shards, starts, int(before))
        problems.append(
            Problem(
                what=f"the image of {first_shard.name} row {first_row} again",
                file=shard.name,
                row=row,
                why=f"{len(pairs)} images are there more than once; fresh samples must be new",
                remedy="remove copies from the source and make the data set in another folder",
            )
        )
    return problems


def _locate(
    shards: list[CheckedShard], starts: Int[np.ndarray, " shards+1"], index: int
) -> tuple[ShardRecord, int]:
    shard = int(np.searchsorted(starts, index, side="right")) - 1
    return shards[shard].record, index - int(starts[shard])


def _find_near(
    folder: Path, shards: list[CheckedShard], manifest: Manifest | None
) -> tuple[NearDuplicate, ...]:
    """Near-duplicates among the shards that are whole."""
    if manifest is None or not shards:
        return ()
    records = [shard.record for shard in shards]
    hashes = [shard.hashes for shard in shards]
    means = np.concatenate([shard.means for shard in shards if shard.means is not None])
    return near_duplicates(folder, records, manifest.image_shape, hashes, means)


def _check_manifest(manifest: Manifest, records: list[ShardRecord]) -> list[Problem]:
    """The manifest lists exactly the commit records that there are."""
    listed = {shard.name: canonical_json(shard.to_json()) for shard in manifest.shards}
    there = {record.name: canonical_json(record.to_json()) for record in records}
    differing = sorted(n for n in listed.keys() | there.keys() if listed.get(n) != there.get(n))
    if not differing:
        return []
    name = differing[0]
    state = "another record" if name in listed and name in there else "no record"
    why = f"{len(differing)} differ; {name} has {state} {'there' if name in listed else 'in it'}"
    what = "does not agree with the commit records"
    return [Problem(what=what, file="manifest.json", why=why, remedy=REMAKE)]


def _check_normalisation(manifest: Manifest, shards: list[CheckedShard]) -> list[Problem]:
    """It is that of `reference` as it was at first (it may have grown), or of the first block."""
    needed = manifest.split("reference") or manifest.split("stream")[:1]
    names = {shard.record.name for shard in shards}
    if not needed or any(record.name not in names for record in needed):
        return []  # it cannot be told, and what is missing has been reported
    sums = {split: [s.sums for s in shards if s.record.split == split] for split in SPLIT_START}
    possible = [*accumulate(sums["reference"]), *sums["stream"][:1]]
    found = [manifest.mean, manifest.deviation]
    # a billionth of a grey level is no edit, but may be another system's square root
    if any(np.allclose(s.normalisation(), found, rtol=1e-9, atol=0) for s in possible):
        return []
    mean = ", ".join(f"{value:.4f}" for value in possible[0].normalisation()[0])
    what, why = "not the normalisation of its images", f"the mean of which is {mean}"
    remedy = f"restore mean and deviation, or remove the file, then {REMAKE}"
    return [Problem(what=what, file="manifest.json", why=why, remedy=remedy)]


def _remove(folder: Path, names: set[str]) -> tuple[str, ...]:
    """Delete the record first: a shard without one does not count."""
    paths = [folder / f"{name}{suffix}" for name in sorted(names) for suffix in (".json", ".h5")]
    removed = [path for path in paths if path.exists()]
    for path in removed:
        path.unlink()
    return tuple(path.name for path in removed)
