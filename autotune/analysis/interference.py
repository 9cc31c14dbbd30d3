"""What else went on while a study was measured: told, and where it was too much, refused."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from autotune.blocks import Block, Interference
from autotune.errors import BusyMachineError, MachineChangedError
from autotune.study.records import TrialRecord
from autotune.system.load import Load, QuietKeeper
from autotune.system.machine import this_machine, usable_cores


def check_before_start(keeper: QuietKeeper, *, allow_busy: bool) -> str | None:
    """Look at the machine before anything is started; gives a note where it is not quiet.

    Where it may be busy nothing is looked at: the blocks will tell.

    Raises:
        BusyMachineError: Nothing can be measured beside what runs already.
    """
    if allow_busy or keeper.wait() or keeper.last_load is None:
        return None
    if keeper.last_load.is_too_high:
        raise BusyMachineError(_too_busy(keeper.last_load))
    return f"note: {keeper.last_load}"


def check_cores() -> None:
    """Make sure that the machine still is what it was when the run began.

    Raises:
        MachineChangedError: Another number of cores may be used now.
    """
    before, now = this_machine().usable_cores, usable_cores()
    if now != before:
        raise MachineChangedError(
            f"{now} cores may be used now, and {before} when the run began (affinity or a quota "
            "was changed): what was measured is kept; give the cores back, or start another study "
            "with --fresh"
        )


def check_confirmed(runs: Sequence[TrialRecord], keeper: QuietKeeper) -> None:
    """Refuse an answer that would rest on runs of which every block was badly disturbed.

    Where the machine is quiet now that no trial runs, what was seen belongs to the training: a
    file system or a database that serves it.

    Raises:
        BusyMachineError: It would.
    """
    if not all(is_disturbed_throughout(run) for run in runs) or keeper.wait():
        return
    blocks = _blocks(runs)
    others_s = sum(block.other_cpu_s + block.stolen_s for block in blocks)
    load = Load(
        cores=others_s / sum(block.duration_s for block in blocks),
        capacity_cores=blocks[0].capacity_cores,
        neighbours=keeper.last_load.neighbours if keeper.last_load else (),
    )
    if load.is_too_high:
        raise BusyMachineError(_too_busy(load))


def is_disturbed_throughout(record: TrialRecord) -> bool:
    """Whether not one block of a trial was undisturbed."""
    return all(block.interference for block in _blocks([record]))


def disturbed_by(records: Sequence[TrialRecord], keeper: QuietKeeper) -> tuple[str, ...]:
    """What disturbed blocks of a study, the most frequent first, by name where one is known."""
    causes = collections.Counter(
        cause for block in _blocks(records) for cause in block.interference
    )
    neighbours = keeper.last_load.neighbours if keeper.last_load else ()
    names = f" ({', '.join(map(str, neighbours))})" if neighbours else ""
    return tuple(
        cause.value + (names if cause is Interference.OTHER_PROCESSES else "")
        for cause, _ in causes.most_common()
    )


def _blocks(records: Sequence[TrialRecord]) -> list[Block]:
    return [block for record in records for sample in record.samples for block in sample.blocks]


def _too_busy(load: Load) -> str:
    return (
        f"the machine is too busy to measure on: {load}. Run the same command again when it is "
        "quiet (what was measured is kept), or measure in spite of it with --allow-busy"
    )
