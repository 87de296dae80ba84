"""What can go wrong that is not a bug, one class for each exit code of the command line.

Messages say what, where (file, row, step), why, and the next command.
"""

from __future__ import annotations

from typing import ClassVar


class BootstrapError(Exception):
    """A failure that a user can understand; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(BootstrapError, ValueError):
    """The command or recipe asks for something that cannot be done (exit 2)."""

    exit_code = 2


class DataError(BootstrapError):
    """Data on disk is missing, invalid or corrupt (exit 3)."""

    exit_code = 3


class NotEnoughData(BootstrapError):
    """The stream is too short to stay fresh (exit 4)."""

    exit_code = 4


class NumericError(BootstrapError):
    """NaN or infinity where a number is needed (exit 5)."""

    exit_code = 5


class Interrupted(BootstrapError):
    """Stopped on request after saving; the same command goes on (exit 75)."""

    exit_code = 75


class StorageError(BootstrapError, OSError):
    """The disk is full or fails (exit 75); once that is mended the same command goes on."""

    exit_code = 75
