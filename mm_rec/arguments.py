"""What the command lines have in common: errors in one line, and types with a range."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from mm_rec.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Reports bad options as every other bad input is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{message} (--help lists the options)")


def at_least(minimum: int) -> Callable[[str], int]:
    """Return the type of whole numbers from `minimum` on."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    return whole_number


def seed(text: str) -> int:
    """Return a seed of random numbers."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must lie in [0, 2^32), got {text}")
    return value


def rate(text: str) -> float:
    """Return a number in [0, 1)."""
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1), got {text}")
    return value


def number(text: str) -> float:
    """Return a number of at least 0."""
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text}")
    return value
