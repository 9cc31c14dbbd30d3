"""The number of ranks in a command that torchrun starts."""

import pytest

from autotune.errors import BadInputError
from autotune.torchrun import with_ranks_per_node


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("torchrun train.py", "torchrun --nproc-per-node 2 train.py"),
        ("torchrun --nproc-per-node 1 train.py", "torchrun --nproc-per-node 2 train.py"),
        ("torchrun --nproc_per_node=gpu train.py", "torchrun --nproc_per_node=2 train.py"),
        ("python -m torch.distributed.run a.py", None),
        ("srun /opt/bin/torchrun --nnodes 2 a.py", None),
        # What is the script's own stays.
        (
            "torchrun --nnodes 1 --nproc-per-node 4 a.py --nproc-per-node 7",
            "torchrun --nnodes 1 --nproc-per-node 2 a.py --nproc-per-node 7",
        ),
    ],
)
def test_torchruns_own_option_is_changed(before, after):
    found = " ".join(with_ranks_per_node(before.split(), 2))
    if after is None:
        program = "torch.distributed.run" if "-m" in before else "torchrun"
        after = before.replace(program, f"{program} --nproc-per-node 2", 1)
    assert found == after


def test_a_command_without_torchrun_is_refused():
    with pytest.raises(BadInputError, match="must start its ranks with torchrun.*'python'"):
        with_ranks_per_node(("python", "train.py"), 2)
