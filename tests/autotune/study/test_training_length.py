"""The length of the whole training, as people write it, and in samples."""

import pytest

from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.study.training_length import LengthUnit, TrainingLength, parse_training_length

BASELINE = ThroughputConfig(batch_size=4, gradient_accumulation_steps=2)


@pytest.mark.parametrize(
    ("text", "count", "unit", "shown"),
    [
        ("20 epochs", 20, LengthUnit.EPOCHS, "20 epochs"),
        (" 1epoch ", 1, LengthUnit.EPOCHS, "1 epoch"),
        ("5000steps", 5000, LengthUnit.STEPS, "5,000 steps"),
        ("007 steps", 7, LengthUnit.STEPS, "7 steps"),
    ],
)
def test_a_length_is_a_number_of_epochs_or_steps(text, count, unit, shown):
    found = parse_training_length(text, source="x")
    assert found == TrainingLength(count=count, unit=unit)
    assert str(found) == shown


@pytest.mark.parametrize(
    "text", ["", "20", "0 epochs", "-1 steps", "1.5 epochs", "3 days", "9" * 99]
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(BadInputError, match="--training: must be a length such as 20epochs"):
        parse_training_length(text, source="--training")


def test_samples_do_not_depend_on_what_is_tuned():
    epochs = TrainingLength(count=3, unit=LengthUnit.EPOCHS)
    assert epochs.num_samples(BASELINE, steps_per_epoch=100) == 3 * 100 * 4
    assert epochs.num_samples(BASELINE, steps_per_epoch=None) is None
    steps = TrainingLength(count=3, unit=LengthUnit.STEPS)
    assert steps.num_samples(BASELINE, steps_per_epoch=None) == 3 * 8
