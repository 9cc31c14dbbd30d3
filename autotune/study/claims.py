"""Which process runs a trial of a study, and whether it still does."""

from __future__ import annotations

import dataclasses
import os
import platform
from typing import Self

import psutil

# Times at which a machine or process began are reckoned back from a clock that is set now and then.
_SAME_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process that runs trials.

    Attributes:
        host: Name of its machine.
        boot_s: Unix time at which that was started.
        pid: Its number.
        began_s: Unix time at which it began.
    """

    host: str
    boot_s: float
    pid: int
    began_s: float

    @classmethod
    def this(cls) -> Self:
        """This process."""
        return cls(
            host=platform.node(),
            boot_s=psutil.boot_time(),
            pid=os.getpid(),
            began_s=psutil.Process().create_time(),
        )

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == platform.node()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to run no more: that of another machine is never known."""
        if not self.is_here:
            return False
        if abs(self.boot_s - psutil.boot_time()) > _SAME_S:
            return True
        try:
            began_s = psutil.Process(self.pid).create_time()
        except psutil.Error:
            return True
        return abs(began_s - self.began_s) > _SAME_S
