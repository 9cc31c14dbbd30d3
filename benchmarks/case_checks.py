"""What is wrong with the outcome of a case: what it stated, against what plain training does."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterator, Sequence

from benchmarks.case_list import Case
from benchmarks.case_training import Training, last_line, ratio
from benchmarks.case_tuning import Tuning

# What a run and its user agreed on.
_WRITTEN = ("studies", "best_config.yaml", "*.log")
_OVER_BUDGET_S = 15.0
# Settings that follow from the number of workers more often than not.
_NOT_TOLD = ("prefetch_factor", "persistent_workers")
# Trainings are seconds long, and on shared cores.
_SPEED_TOLERANCE, _EPOCH_TOLERANCE, _EPOCH_LEAST_S = 0.10, 0.15, 0.05
# Trainings that differ by more than this prove nothing right.
_MOST_SPEED_TOLERANCE = 0.3
_COUNT_TOLERANCE, _VARYING_TOLERANCE = 0.05, 0.15


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement of a case.

    Attributes:
        outcome: What the run answered, and what training then did, in a line.
        wrong: What is wrong with it; empty where it is right.
        trained: How many times as fast plain training is with the file; None if not compared.
    """

    outcome: str
    wrong: tuple[str, ...]
    trained: float | None = None


Pairs = Sequence[tuple[Training, Training]]


def judge(
    case: Case, tuning: Tuning, before: Sequence[Training], pairs: Pairs, *, speed: bool = True
) -> Verdict:
    """Judge one outcome.

    Args:
        case: What is right.
        tuning: What the run did.
        before: Trainings with the script's own settings.
        pairs: Trainings with the script's own settings and with the file, side by side; empty
            where the file holds the script's own settings.
        speed: Whether seconds are judged, too.
    """
    wrong = [*_run_faults(case, tuning), *_leftovers(case, tuning)]
    if tuning.exit_code == 0 and tuning.best:
        wrong += [*_settings_faults(case, tuning), *_count_faults(case, tuning, before, pairs)]
        if speed and case.settles:
            wrong += _speed_faults(case, tuning, pairs)
    elif not case.refused and tuning.exit_code is not None:
        wrong.append("not tuned")
    trained = ratio(pairs)
    return Verdict(
        outcome=_outcome(tuning, trained[0] if trained else None),
        wrong=tuple(wrong),
        trained=trained[0] if trained else None,
    )


def needs_training(tuning: Tuning) -> bool:
    """Whether the file differs from the script's own settings."""
    return tuning.exit_code == 0 and tuning.best is not None and tuning.config != tuning.baseline


def _run_faults(case: Case, tuning: Tuning) -> Iterator[str]:
    """Exit code, time and what was printed."""
    if tuning.exit_code is None:
        yield f"did not end within {tuning.duration_s:.0f} s"
    elif case.refused and tuning.exit_code not in (1, 2):
        yield f"exit code {tuning.exit_code}: it must be refused"
    elif tuning.duration_s > tuning.budget_s + _OVER_BUDGET_S:
        yield f"took {tuning.duration_s:.0f} s of {tuning.budget_s:.0f} s"
    if has_own_traceback(tuning.output):
        yield "a traceback of autotune's own"
    said = _said(tuning.output)
    for pattern in case.says:
        if not re.search(pattern, said, re.IGNORECASE):
            yield f"does not say {pattern!r}"
    for pattern in case.never_says:
        if re.search(pattern, said, re.IGNORECASE):
            yield f"says {pattern!r}"


def _said(output: str) -> str:
    """The output less what only repeats the command: the script's name may be what is sought."""
    lines = [line for line in output.splitlines() if not line.startswith(("command:", "study:"))]
    return re.sub(r"\S+\.(py|sh)\b", "", "\n".join(lines))


def has_own_traceback(output: str) -> bool:
    """Whether a traceback was printed that ends in autotune's own code."""
    for part in output.split("Traceback (most recent call last)")[1:]:
        indented = re.match(r":\n((?:[ \t].*\n)+)", part)
        files = re.findall(r'File "([^"]+)"', indented[1]) if indented else []
        if files and re.search(r"[/\\]autotune[/\\]", files[-1]):
            return True
    return False


def _leftovers(case: Case, tuning: Tuning) -> Iterator[str]:
    # A run that was ended from outside had no chance to tidy up.
    for name in tuning.left if tuning.exit_code is not None else ():
        yield f"left {name}"
    for name in tuning.files:
        if any(fnmatch.fnmatch(name, pattern) for pattern in case.must_not_exist):
            yield f"code after the loop ran in a trial: {name}"
        elif not any(fnmatch.fnmatch(name, p) for p in (*_WRITTEN, *case.may_write)):
            yield f"wrote {name} into the user's directory"


def _settings_faults(case: Case, tuning: Tuning) -> Iterator[str]:
    for name in case.rules_out:
        if tuning.config.get(name) != tuning.baseline.get(name):
            yield f"{name} {tuning.config.get(name)}: it is to stay {tuning.baseline.get(name)}"
    for name, value in case.settings:
        if tuning.config.get(name) != value:
            yield f"{name} must be {value}, not {tuning.config.get(name)}"


def _count_faults(
    case: Case, tuning: Tuning, before: Sequence[Training], pairs: Pairs
) -> Iterator[str]:
    """Samples per epoch and per optimizer step."""
    plain = before[0] if before else None
    if plain is not None:
        if plain.error:
            yield f"training with the script's own settings fails: {plain.error}"
        yield from _epoch_fault("of the script", case.samples_per_epoch, plain, plain.batch_size)
        known = case.samples_per_update or (plain.samples_per_update if case.varies else None)
        stated = tuning.stated_samples_per_update("baseline")
        yield from _update_fault("baseline", stated, known, varies=case.varies)
    for _, after in pairs[:1]:
        if after.error:
            yield f"training with the file fails: {after.error}"
            return
        if plain is not None:
            largest = max(plain.batch_size, after.batch_size)
            yield from _epoch_fault("with the file", plain.samples_per_epoch, after, largest)
        if case.samples_per_update is not None or case.varies:
            stated = tuning.stated_samples_per_update("expected")
            expected = (after.samples_per_update, _scaled(case, tuning))
            yield from _update_fault("chosen", stated, *expected, varies=case.varies)


def _epoch_fault(
    whose: str, expected: int | None, training: Training, batch_size: int
) -> Iterator[str]:
    found = training.samples_per_epoch
    if expected is None or found is None:
        return
    allowed = batch_size if training.drop_last else 0
    if abs(found - expected) > allowed:
        yield f"an epoch {whose} has {found:,} samples, not {expected:,}"


def _scaled(case: Case, tuning: Tuning) -> float | None:
    """Samples per update with the file, for full batches and as many of them as before."""
    before, after = tuning.baseline, tuning.config
    if case.samples_per_update is None:
        return None
    names = ("batch_size", "gradient_accumulation_steps")
    return case.samples_per_update * math.prod(after[n] / before[n] for n in names)


def _update_fault(
    whose: str, stated: float | None, *expected: float | None, varies: bool
) -> Iterator[str]:
    """Nothing where what was stated is near one of those expected, or nothing is known."""
    known = [number for number in expected if number is not None]
    if stated is None or not known:
        return
    tolerance = _VARYING_TOLERANCE if varies else _COUNT_TOLERANCE
    if all(abs(stated / number - 1.0) > tolerance for number in known):
        right = " or ".join(dict.fromkeys(f"{number:.0f}" for number in known))
        yield f"{whose}: {stated:.0f} samples per update stated, not {right}"


def _speed_faults(case: Case, tuning: Tuning, pairs: Pairs) -> Iterator[str]:
    """What was found of what is there, the trained speed-up, and the length of an epoch."""
    if case.gain is not None and tuning.speedup[0] < case.gain:
        yield f"a speed-up of {case.gain:g} is there, {tuning.speedup[0]:.2f} was found"
    trained = ratio(pairs)
    if trained is None:
        if pairs and not any(after.error for _, after in pairs):
            yield "the speed of plain training could not be told"
        return
    found, spread = trained
    tolerance = 1.0 + min(max(_SPEED_TOLERANCE, spread / 2), _MOST_SPEED_TOLERANCE)
    stated, low, high = tuning.speedup
    if not low / tolerance <= found <= high * tolerance:
        yield f"trains {found:.2f}x as fast; {stated:.2f}x ({low:.2f} to {high:.2f}) is stated"
    ratios = [
        after.epoch_s / before.epoch_s
        for before, after in pairs
        if before.epoch_s and after.epoch_s and abs(after.epoch_s - before.epoch_s) > _EPOCH_LEAST_S
    ]
    if ratios and min(ratios) > 1.0 + _EPOCH_TOLERANCE:
        yield f"an epoch takes {min(ratios):.2f} times as long with the file"


def _outcome(tuning: Tuning, trained: float | None) -> str:
    if tuning.exit_code is None:
        return "did not end"
    if tuning.exit_code or not tuning.best:
        return f"exit code {tuning.exit_code}: {last_line(tuning.output)[:100]}"
    if not tuning.gains:
        return "no gain"
    stated, low, high = tuning.speedup
    changes = [
        f"{name} {tuning.baseline.get(name)} -> {value}"
        for name, value in tuning.config.items()
        if value != tuning.baseline.get(name)
        and name not in ("prefetch_factor", "persistent_workers")
    ]
    then = "not trained" if trained is None else f"trained {trained:.2f}x"
    return f"{stated:.2f}x ({low:.2f} to {high:.2f}), {then}: {', '.join(changes)}"
