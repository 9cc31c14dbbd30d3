"""What follows where forked trials turn out not to be like training."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.analysis.comparison import complete_rounds
from autotune.analysis.forks import find_disagreement
from autotune.study.records import TrialRecord
from autotune.tuning.executor import Executor

# Searching again in fresh processes is worth while if so many can be started.
_FEWEST_FRESH_VISITS = 3


def finds_forks_wrong(
    executor: Executor, confirmed: Sequence[TrialRecord], baseline: TrialRecord
) -> bool:
    """Whether to search again, since forked trials are found not to be like training.

    They are not believed from then on, whether there is time to search again or not.

    Args:
        executor: Has the study's trials, and starts no more forked ones.
        confirmed: The confirming runs so far.
        baseline: The baseline's trial, which tells what a fresh process takes.
    """
    store = executor.store
    if store.facts.get("forks_mislead"):
        return False
    runs = complete_rounds(confirmed, baseline.config)
    found = find_disagreement(store.records(), runs, baseline.config)
    if found is None:
        return False
    assert baseline.duration_s is not None and baseline.start_up_s is not None
    needed_s = len(runs) * baseline.duration_s + _FEWEST_FRESH_VISITS * baseline.start_up_s
    has_time = executor.left_s > needed_s
    reason = f"forked trials mislead: {found}"
    store.set_facts(fork_failure=reason, forks_mislead=True)
    executor.runner.give_up_forking(reason)
    what_next = (
        "the search goes on in fresh processes"
        if has_time
        else "there is no time to search again: give more with --budget"
    )
    executor.observer.note(f"{reason}; they count no longer, and {what_next}")
    return has_time
