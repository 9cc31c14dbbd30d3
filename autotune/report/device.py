"""What trials on a GPU tell of its memory, of copies to it, and of compiled steps."""

from __future__ import annotations

import math
from collections.abc import Iterable

from autotune.config import ThroughputConfig
from autotune.measurement import Measurement, figure
from autotune.report.study_view import StudyView
from autotune.study.records import Phase, TrialRecord

# Copies that take less of a step are no matter.
_LEAST_COPYING = 0.03


def device(view: StudyView) -> list[str]:
    """What to know of the GPU; nothing where none was used."""
    chosen = view.best or view.baseline
    return [
        *_memory(view.records, chosen),
        *_copying(view.records, chosen),
        *_last_batch(view.records, chosen),
    ]


def _memory(records: Iterable[TrialRecord], chosen: ThroughputConfig | None) -> list[str]:
    """The largest batch that fits, where one was found that does not.

    Confirming runs share the GPU with others.
    """
    fits: dict[int, float] = {}
    too_large = set()
    for record in records:
        if record.phase is Phase.CONFIRM:
            continue
        size = record.config.batch_size
        if record.measurement is not None and record.measurement.device_memory_share is not None:
            fits[size] = max(fits.get(size, 0.0), record.measurement.device_memory_share)
        elif record.failure is not None and record.failure.cause.is_of_device:
            too_large.add(size)
    too_large = {size for size in too_large if size > max(fits, default=0)}
    if not fits or not too_large or chosen is None:
        return []
    largest = max(fits)
    chosen_too = ", which is chosen" if chosen.batch_size == largest else ""
    return [
        f"the largest batch size that fits on the GPU is {largest}{chosen_too}: it takes "
        f"{100 * fits[largest]:.0f} % of the memory, and {min(too_large)} takes too much"
    ]


def _copying(records: Iterable[TrialRecord], chosen: ThroughputConfig | None) -> list[str]:
    """That copies keep the loop waiting, where the GPU has time to spare.

    While it is busy, a copy waits for the work before it, which costs nothing.
    """
    found = [
        (m.copy_s, m.seconds_per_step, m.gpu_utilisation)
        for record in records
        if record.config == chosen
        and (m := record.measurement) is not None
        and m.copy_s
        and m.gpu_utilisation is not None
    ]
    if not found:
        return []
    copy_s, step_s, utilisation = (sum(values) / len(found) for values in zip(*found, strict=True))
    if min(copy_s, (1 - utilisation) * step_s) < _LEAST_COPYING * step_s:
        return []
    return [
        f"the loop waits {figure(1000 * copy_s)} ms of a step of {figure(1000 * step_s)} ms for "
        "copies of its batch to the GPU: from page-locked memory (pin_memory) they need not be "
        "waited for with .to(device, non_blocking=True)"
    ]


def _last_batch(records: Iterable[TrialRecord], chosen: ThroughputConfig | None) -> list[str]:
    """That the last batch of an epoch is compiled by itself, where steps are compiled."""
    for record in records:
        measurement = record.measurement
        if record.config != chosen or measurement is None:
            continue
        compiles = any(s.settling is not None and s.settling.num_compiled for s in record.samples)
        if compiles and _is_last_batch_smaller(measurement, record.config.batch_size):
            return [
                "note: the steps are compiled, and the last batch of an epoch is smaller than the "
                "others, so that they are compiled once more for it: drop_last=True avoids that"
            ]
    return []


def _is_last_batch_smaller(measurement: Measurement, batch_size: int) -> bool:
    num_samples, num_steps = measurement.samples_per_epoch, measurement.steps_per_epoch
    if num_samples is None or num_steps is None:
        return False
    return num_samples % batch_size > 0 and num_steps == math.ceil(num_samples / batch_size)
