"""What is right for each script in `benchmarks/cases`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

SCRIPTS = Path(__file__).with_name("cases")
NUM_KINDS = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A training script and the outcome that is right for it.

    Attributes:
        kind: 1 counting, 2 which loop is measured, 3 costs that change with time, 4 failures that
            teach, 5 side effects, 6 ranks, 7 hidden buffers, 8 messages.
        command: How it is started; `{script}` stands for the script, `{stem}` for its path less
            the suffix.
        needs: Packages that it imports beside torch and numpy.
        refused: Whether the run must end with exit code 1 or 2 and a message in one line.
        samples_per_epoch: With the script's own settings.
        samples_per_update: The same; None where it depends on the rule for several loaders or
            ranks, or where no optimizer steps.
        varies: Whether samples per update differ from batch to batch.
        size: How samples are counted without an index sampler (see `case_observer`).
        settings: What the settings file must hold, by name: the value itself.
        rules_out: The settings that the file must leave as the script has them.
        gain: The least speed-up that a run must find.
        first_epochs: Epochs that are unlike those after them.
        settles: Whether it ever is as fast as it stays; otherwise no speeds are compared.
        says: What the output must contain, as regular expressions; case does not matter.
        never_says: What it must not contain.
        may_write: Names that the script's own code before or inside the loop writes.
        must_not_exist: Names of files that only the code after the loop writes.
        fast: Whether the tests run it.
    """

    kind: int
    command: tuple[str, ...] = ("python", "{script}")
    needs: tuple[str, ...] = ()
    refused: bool = False
    samples_per_epoch: int | None = None
    samples_per_update: float | None = None
    varies: bool = False
    size: str = "0"
    settings: tuple[tuple[str, object], ...] = ()
    rules_out: tuple[str, ...] = ()
    gain: float | None = None
    first_epochs: int = 0
    settles: bool = True
    says: tuple[str, ...] = ()
    never_says: tuple[str, ...] = ("protocol",)
    may_write: tuple[str, ...] = ()
    must_not_exist: tuple[str, ...] = ()
    fast: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.kind <= NUM_KINDS:
            raise ValueError(f"kind must be 1 to {NUM_KINDS}, not {self.kind}")


# Words for a cost that changes once, and for one that goes on changing.
_CHANGES = (
    r"epochs after the first|(after|from|since).{0,40}epoch|cost.{0,40}chang|chang.{0,40}cost|cache"
)
_SLOWS = r"slow(s|er|ing|ed)?.{0,40}(time|run|long|down)|chang.{0,40}(time|cost)|drift"
# A worker that is given other samples in each epoch needs several to have seen them all.
_PRIVATE_CACHES = 8

EXPECTED: dict[str, Case] = {
    # Kind 1: what is counted is what is trained.
    "unsharded_iterable": Case(
        kind=1,
        # One worker repeats nothing.
        samples_per_epoch=3000,
        samples_per_update=16,
        says=("get_worker_info",),
    ),
    "token_batch_sampler": Case(
        kind=1,
        samples_per_epoch=4000,
        varies=True,
        rules_out=("batch_size",),
        says=("batch_sampler",),
    ),
    "padding_free": Case(kind=1, samples_per_epoch=5000, samples_per_update=8),
    "manual_accumulation": Case(kind=1, samples_per_epoch=4000, samples_per_update=128),
    "time_first": Case(kind=1, samples_per_epoch=2000, samples_per_update=8),
    "dict_with_scalar": Case(kind=1, samples_per_epoch=3000, samples_per_update=16),
    "premade_batches": Case(
        kind=1,
        samples_per_epoch=4000,
        samples_per_update=50,
        rules_out=("batch_size",),
        says=("batch_size",),
        gain=1.2,
    ),
    "iterable_of_batches": Case(
        kind=1,
        samples_per_epoch=1920,
        samples_per_update=20,
        rules_out=("batch_size",),
        never_says=("get_worker_info",),
        gain=1.2,
    ),
    "gan_two_optimizers": Case(kind=1, samples_per_epoch=3200, samples_per_update=32),
    "scaler_skips_steps": Case(kind=1, samples_per_epoch=3200, samples_per_update=128 / 3),
    "lbfgs_closure": Case(kind=1, samples_per_epoch=3200, samples_per_update=64),
    "accumulation_at_zero": Case(kind=1, samples_per_epoch=3200, samples_per_update=64),
    "last_partial_batch": Case(kind=1, samples_per_epoch=150, samples_per_update=50),
    "weighted_sampler": Case(kind=1, samples_per_epoch=1000, samples_per_update=10),
    "sampler_set_epoch": Case(kind=1, samples_per_epoch=2000, samples_per_update=16),
    "sharded_by_worker_info": Case(
        kind=1,
        samples_per_epoch=1200,
        samples_per_update=8,
        never_says=("get_worker_info",),
        gain=1.2,
    ),
    "sharded_by_worker_init": Case(
        kind=1,
        samples_per_epoch=1200,
        samples_per_update=8,
        never_says=("get_worker_info",),
        gain=1.2,
    ),
    # A single worker repeats nothing.
    "unsharded_random_iterable": Case(
        kind=1, samples_per_epoch=1000, samples_per_update=10, says=("get_worker_info",)
    ),
    "random_batches_without_loader": Case(
        kind=1,
        samples_per_update=12,
        rules_out=("num_workers",),
        must_not_exist=("ckpt.pt",),
    ),
    "ragged_lists": Case(kind=1, samples_per_epoch=1500, samples_per_update=4),
    # Kind 2: the loop that is measured is the training loop.
    "two_loaders_zip": Case(kind=2, samples_per_epoch=1984),
    "onecycle_schedule": Case(
        kind=2, samples_per_epoch=4000, samples_per_update=32, never_says=("Tried to step",)
    ),
    "loader_attributes": Case(
        kind=2, samples_per_epoch=4000, samples_per_update=32, never_says=("has no attribute",)
    ),
    "cycle_and_next": Case(
        kind=2,
        samples_per_epoch=4000,
        samples_per_update=32,
        may_write=("model-[0-9]*.pt",),
        must_not_exist=("model-final.pt",),
    ),
    "evaluation_first": Case(kind=2, samples_per_epoch=2000, samples_per_update=16),
    "max_steps_break": Case(
        kind=2, samples_per_epoch=4000, samples_per_update=32, must_not_exist=("model.pt",)
    ),
    "lightning_trainer": Case(
        kind=2, needs=("lightning",), samples_per_epoch=3000, samples_per_update=32
    ),
    "nested_evaluation": Case(kind=2, samples_per_epoch=3200, samples_per_update=16),
    "islice_epochs": Case(kind=2, samples_per_update=32, must_not_exist=("last.pt",)),
    "next_with_restart": Case(
        kind=2, samples_per_epoch=2000, samples_per_update=32, must_not_exist=("last.pt",)
    ),
    "progress_bar": Case(kind=2, needs=("tqdm",), samples_per_epoch=3200, samples_per_update=32),
    "steps_in_generator": Case(kind=2, samples_per_epoch=3200, samples_per_update=32),
    "three_loaders_zip": Case(kind=2, samples_per_epoch=1600),
    "two_loaders_at_two_rates": Case(kind=2, samples_per_epoch=3200, samples_per_update=32),
    "lambda_schedule_list": Case(
        kind=2, samples_per_epoch=3200, samples_per_update=32, never_says=("out of range",)
    ),
    "cosine_array": Case(
        kind=2, samples_per_epoch=3200, samples_per_update=32, never_says=("out of bounds",)
    ),
    "while_true_then_save": Case(
        kind=2,
        samples_per_epoch=2000,
        samples_per_update=32,
        must_not_exist=("final.pt", "result.txt"),
    ),
    "checkpoint_in_finally": Case(
        kind=2,
        samples_per_epoch=3200,
        samples_per_update=32,
        must_not_exist=("checkpoint.pt", "interrupted.pt"),
    ),
    "averaged_weights": Case(kind=2, samples_per_epoch=3200, samples_per_update=32),
    "no_optimizer": Case(kind=2, samples_per_epoch=3200, says=("no optimizer",)),
    "optimizer_after_loader": Case(kind=2, samples_per_epoch=3200, samples_per_update=32),
    # Kind 3: costs that change with time.
    "cached_decoding": Case(
        kind=3,
        samples_per_epoch=800,
        samples_per_update=16,
        first_epochs=_PRIVATE_CACHES,
        says=(_CHANGES,),
    ),
    "memory_cache": Case(
        kind=3,
        samples_per_epoch=600,
        samples_per_update=20,
        first_epochs=_PRIVATE_CACHES,
        says=(_CHANGES,),
    ),
    "disk_cache": Case(
        kind=3,
        samples_per_epoch=500,
        samples_per_update=20,
        first_epochs=1,
        says=(_CHANGES,),
    ),
    "cached_function": Case(
        kind=3,
        samples_per_epoch=500,
        samples_per_update=20,
        first_epochs=_PRIVATE_CACHES,
        says=(_CHANGES,),
    ),
    "leaking_dataset": Case(
        kind=3,
        samples_per_epoch=4000,
        samples_per_update=16,
        settles=False,
        says=(_SLOWS,),
    ),
    "short_samples_first": Case(
        kind=3, samples_per_epoch=800, samples_per_update=8, first_epochs=1
    ),
    "caching_iterable": Case(
        kind=3,
        samples_per_epoch=600,
        samples_per_update=20,
        first_epochs=1,
        says=(_CHANGES,),
        never_says=("get_worker_info",),
    ),
    "lazily_opened_file": Case(kind=3, samples_per_epoch=1500, samples_per_update=10, gain=1.2),
    # Kind 4: failures that teach.
    "spawn_unpicklable": Case(
        kind=4,
        samples_per_epoch=2000,
        samples_per_update=32,
        rules_out=("num_workers",),
        says=(r"pickle",),
        never_says=("nothing to compare",),
    ),
    "spawn_no_main_guard": Case(
        kind=4,
        samples_per_epoch=4000,
        samples_per_update=32,
        rules_out=("num_workers",),
        says=("__main__",),
    ),
    "small_data_opencv": Case(
        kind=4,
        needs=("cv2",),
        samples_per_epoch=192,
        samples_per_update=16,
        never_says=("delivered no batch", "nothing to compare"),
    ),
    "batch_larger_than_data": Case(
        kind=4,
        samples_per_epoch=80,
        samples_per_update=16,
        never_says=("delivered no batch", "nothing to compare"),
        fast=True,
    ),
    "spawn_context_with_lock": Case(
        kind=4,
        samples_per_epoch=3000,
        samples_per_update=16,
        rules_out=("num_workers",),
        says=("pickle",),
        never_says=("nothing to compare",),
    ),
    "workers_killed_by_signal": Case(
        kind=4,
        samples_per_epoch=3000,
        samples_per_update=16,
        rules_out=("num_workers",),
        says=("worker.*(signal|killed)",),
        never_says=("nothing to compare",),
    ),
    "batchnorm_batch_of_one": Case(
        kind=4, samples_per_epoch=3200, samples_per_update=16, never_says=("nothing to compare",)
    ),
    "worker_raises_deep_inside": Case(
        kind=4,
        samples_per_epoch=3000,
        samples_per_update=16,
        rules_out=("num_workers",),
        says=("the licence allows one process only",),
        never_says=("nothing to compare",),
    ),
    "raises_inside_temporary_directory": Case(
        kind=4,
        samples_per_epoch=500,
        samples_per_update=10,
        never_says=("nothing to compare", "No such file"),
    ),
    "random_failure": Case(kind=4, samples_per_epoch=1500, samples_per_update=8, gain=1.2),
    "limited_connections": Case(
        kind=4,
        samples_per_epoch=1500,
        samples_per_update=8,
        gain=1.2,
        says=("too many connections",),
    ),
    # Kind 5: a trial harms nothing.
    "temporary_directory_batchnorm": Case(kind=5, samples_per_epoch=1000, samples_per_update=8),
    "shell_script_with_tee": Case(
        kind=5,
        command=("bash", "{stem}.sh"),
        samples_per_epoch=2000,
        samples_per_update=32,
        may_write=("log.txt",),
        must_not_exist=("done.txt",),
    ),
    # Kind 6: ranks.
    "mp_spawn_ranks": Case(kind=6, samples_per_epoch=8000),
    "torchrun_ranks": Case(
        kind=6,
        command=("torchrun", "--nproc-per-node", "2", "{script}"),
        samples_per_epoch=8000,
    ),
    # Kind 7: hidden buffers.
    "accelerate_prepared": Case(
        kind=7,
        needs=("accelerate",),
        samples_per_epoch=4000,
        samples_per_update=32,
        gain=1.2,
    ),
    # Kind 8: messages.
    "summary_writer_first": Case(
        kind=8,
        needs=("tensorboard",),
        samples_per_epoch=2000,
        samples_per_update=32,
        says=(r"thread.*(SummaryWriter|tensorboard|event_file_writer)",),
        may_write=("runs",),
    ),
    # The first epochs compile a step for each size of a batch.
    "compiled_model": Case(
        kind=8,
        samples_per_epoch=4000,
        samples_per_update=32,
        first_epochs=3,
        says=("compil",),
    ),
}


def script_of(name: str) -> Path:
    """The script of a case."""
    return SCRIPTS / f"{name}.py"
