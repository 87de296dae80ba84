"""Files of weights: safetensors with a card in JSON. Reading one runs no code, whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bootstrap.errors import DataError

# what comes of a file that is not safetensors, of a card that lacks a key or holds nonsense, and of
# tensors that are not those of the network on the card
UNFIT = (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError)


@contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """DataError if the file turns out not to hold the weights of a `what`."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except UNFIT as error:
        why = f"its card lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not the weights of a {what} ({why})") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The text beside the tensors; TypeError if there is none."""
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata())


def read_card(path: Path, what: str) -> dict[str, Any]:
    """What the writer said of the weights; DataError if they are not those of a `what`."""
    with refusing(path, what):
        card = json.loads(read_metadata(path)["card"])
        if not isinstance(card, dict):
            raise TypeError("its card is not an object")
        return card
