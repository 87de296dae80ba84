"""Opens files that mean harm and says what came of it: `hostile_child.py npz|h5 FOLDER`.

Every file in FOLDER but `good.*` is hostile. Prints JSON: per file the error, and by how many MiB
memory grew at most, resident and reserved.
"""

import json
import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from bootstrap.errors import BootstrapError
from bootstrap.files import file_sha256
from bootstrap.shards import ShardReader, ShardRecord
from generators.sources import npz_parts, read_npz

SHAPE = (8, 8, 3)


def read_npz_file(path):
    """Everything there is, as an import would in the end."""
    read_npz(npz_parts(path.parent, path.name))


def read_h5_file(path):
    """Everything there is; the name says how many rows the record claims."""
    n = int(path.stem.rpartition("-")[2])
    record = ShardRecord(
        split="test",
        index=0,
        first_id=0,
        n=n,
        n_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        provenance={},
    )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        os.link(path, Path(folder) / record.name)
        with closing(ShardReader(Path(folder), record, SHAPE)) as reader:
            reader.rows(0, n)


def memory_mib():
    """Peaks of resident and of reserved memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return {name: int(kib[name]) // 1024 for name in ("VmHWM", "VmPeak")}


def main(kind, folder):
    read = {"npz": read_npz_file, "h5": read_h5_file}[kind]
    good = sorted(folder.glob(f"good*.{kind}"))
    for path in good:
        read(path)  # what is needed anyway is loaded now
    before, errors = memory_mib(), {}
    for path in sorted(set(folder.glob(f"*.{kind}")) - set(good)):
        try:
            read(path)
            errors[path.stem] = "it was read"
        except BootstrapError as error:
            errors[path.stem] = f"{type(error).__name__} {error.exit_code}: {error}"
    after = memory_mib()
    grown = {name: after[name] - before[name] for name in before}
    print(json.dumps({"errors": errors, "grown": grown}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
