"""The first look at a script that does not call autotune, as the coordinator sees it."""

from __future__ import annotations

from autotune.errors import BadInputError
from autotune.ipc.introductions import Reception
from autotune.measurement import Failure, FailureCause
from autotune.patch.look import answer_in
from autotune.patch_target import PatchTarget
from autotune.trials.failures import describe_exit
from autotune.trials.launcher import Launch
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
    answer = None
    # A process that ends may have prepared what another one trains on.
    while answer is None or answer.is_ending:
        accepted = reception.accept(launch.start, deadline_s, launch.process)
        if accepted is None:
            break
        channel, message = accepted
        answer = answer_in(message)
        if answer.target is not None:
            return answer.target
        channel.close()
    exit_code = launch.process.poll()
    if answer is None or exit_code:
        limit_s = deadline_s - launch.requested_at_s
        raise TrialFailedError(_describe_silence(launch, exit_code, limit_s))
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
