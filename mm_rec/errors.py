"""The exceptions that mm_rec raises for expected failures."""

from __future__ import annotations


class MmRecError(Exception):
    """Base of every expected failure; the message is one line and says what to do."""


class ConfigError(MmRecError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(MmRecError):
    """A corpus that cannot be found, read, or cut into samples."""


class CheckpointError(MmRecError):
    """A checkpoint that cannot be read, or that does not belong to this run."""


class OutputError(MmRecError):
    """A directory or file that cannot be written, or that must not be overwritten."""
