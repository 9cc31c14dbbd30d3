"""The first look at a script that does not call autotune, as the coordinator sees it."""

from __future__ import annotations

import subprocess

from autotune.errors import BadInputError
from autotune.ipc.introductions import Reception
from autotune.measurement import Failure, FailureCause
from autotune.patch.look import answer_in
from autotune.patch_target import PatchTarget
from autotune.trials.failures import describe_exit
from autotune.trials.launcher import REAP_DEADLINE_S, Launch
from autotune.trials.trial import TrialFailedError, read_tail


def find_target(launch: Launch, reception: Reception, deadline_s: float) -> PatchTarget:
    """What a command that was started with the hook says is to be tuned.

    Args:
        launch: The command.
        reception: Where it reports.
        deadline_s: Monotonic time at which to give up.

    Raises:
        TrialFailedError: The command ended or took too long before its first optimizer steps.
        BadInputError: It cannot be tuned like this; the message says what to do instead.
    """
    accepted = reception.accept(launch.start, deadline_s, launch.process)
    if accepted is None:
        limit_s = deadline_s - launch.requested_at_s
        raise TrialFailedError(_describe_silence(launch, launch.process.poll(), limit_s))
    channel, message = accepted
    answer = answer_in(message)
    if answer.target is not None:
        return answer.target
    channel.close()
    # A process that ends tells what it has not found, and it may end for another reason.
    try:
        exit_code = launch.process.wait(REAP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        exit_code = 0
    if exit_code:
        raise TrialFailedError(_describe_silence(launch, exit_code, 0.0))
    raise BadInputError(f"--patch cannot tune this command: {answer.problem}")


def _describe_silence(launch: Launch, exit_code: int | None, limit_s: float) -> Failure:
    output = read_tail(launch.output)
    if exit_code:
        return describe_exit(exit_code, output, oom_killed=launch.oom.struck())
    cause, message = FailureCause.TIMED_OUT, f"no optimizer took a step within {limit_s:.0f} s"
    if exit_code == 0:
        cause = FailureCause.NEVER_CALLED
        message = (
            "the command ended without a DataLoader of torch: either it uses none, or its Python "
            "does not run the start-up hook (options -E, -I and -S, or autotune not installed)"
        )
    return Failure(cause=cause, message=message, output=output)
