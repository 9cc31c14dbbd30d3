"""Anything at all, where people and files and broken trials may give anything at all."""

import contextlib
import json
import math
import os
import socket
import sqlite3
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from autotune.best_config import read_best_config, write_best_config
from autotune.blocks import BlockRequest, Sample
from autotune.config import ThroughputConfig
from autotune.errors import AutotuneError, BadInputError
from autotune.ipc.channel import Channel
from autotune.measurement import summarise
from autotune.report.dataframe import load_study
from autotune.report.html import make_page
from autotune.report.study_view import open_view
from autotune.space import Space
from autotune.study.definition import parse_duration, read_definition
from autotune.study.storage import failing_in_one_line, storage_url
from autotune.study.training_length import parse_training_length
from autotune.system.memory import OomWatch
from autotune.trials.trial import Trial, TrialFailedError, TrialOrigin

from .test_best_config import make_best

FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.text(max_size=30) | st.from_regex(r"[0-9.]*h?[0-9.]*m?[0-9.]*s?"))
def test_a_duration_is_seconds_or_refused(text):
    with contextlib.suppress(BadInputError):
        found = parse_duration(text, source="x")
        assert found > 0 and not math.isnan(found)


@given(st.text(max_size=30) | st.from_regex(r"[0-9]* ?(epoch|step)s?"))
def test_a_length_is_positive_or_refused(text):
    with contextlib.suppress(BadInputError):
        assert parse_training_length(text, source="x").count > 0


@FILES
@given(content=st.binary(max_size=300))
def test_any_bytes_are_settings_or_refused(tmp_path, content):
    path = tmp_path / "best_config.yaml"
    path.write_bytes(content)
    for read in (read_best_config, lambda path: read_definition(path, {})):
        with pytest.raises(BadInputError, match="best_config.yaml"):
            read(path)


@FILES
@given(data=st.data())
def test_settings_with_anything_in_one_place_are_read_or_refused(tmp_path, data):
    path = tmp_path / "best_config.yaml"
    write_best_config(path, make_best())
    content = part = yaml.safe_load(path.read_text())
    while True:
        key = data.draw(
            st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part)))
        )
        if not isinstance(part[key], (dict, list)) or not part[key] or data.draw(st.booleans()):
            break
        part = part[key]
    if isinstance(part, dict) and data.draw(st.booleans()):
        del part[key]
    else:
        part[key] = data.draw(VALUES)
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    with contextlib.suppress(BadInputError):
        found = read_best_config(path)
        assert found.config.batch_size > 0
        assert math.isfinite(found.expected.samples_per_s)


AXES = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.lists(st.integers(1, 512), min_size=1, max_size=3),
        # No more than two: torch warns of more workers than cores.
        "num_workers": st.lists(st.integers(0, 2), min_size=1, max_size=3),
        "prefetch_factor": st.lists(st.integers(1, 8), min_size=1, max_size=3),
        "num_threads": st.lists(st.integers(1, 8), min_size=1, max_size=3),
        "pin_memory": st.lists(st.booleans(), min_size=1, max_size=2),
        "in_order": st.lists(st.booleans(), min_size=1, max_size=2),
        "multiprocessing_context": st.lists(
            st.sampled_from(["default", "fork", "spawn"]), min_size=1, max_size=2
        ),
    },
)


@settings(deadline=None)
@given(axes=AXES, effective=st.none() | st.integers(1, 512), batch_size=st.integers(1, 64))
def test_every_configuration_of_a_space_is_legal_and_there_once(axes, effective, batch_size):
    try:
        baseline = ThroughputConfig(batch_size=batch_size, num_threads=1)
        if effective:
            baseline = baseline.with_effective_batch_size(effective)
        axes = {name: tuple(values) for name, values in axes.items()}
        found = Space(axes=axes, effective_batch_size=effective).configurations(baseline)
    except BadInputError:
        return
    assert len(set(found)) == len(found)
    for config in found:
        assert config.effective_batch_size == effective or not effective
        kwargs = config.dataloader_kwargs() | {"pin_memory": False}
        DataLoader([0.0], **kwargs)


class Origin:
    """Of a trial that is only a connection."""

    def __init__(self, output: Path) -> None:
        self.origin = TrialOrigin(
            root_pid=os.getpid(),
            groups=frozenset(),
            requested_at_s=0.0,
            output=output,
            oom=OomWatch(),
            find_fault=lambda: None,
            notes=output.with_name("notes"),
            abort=lambda: None,
            end=lambda grace_s: None,
        )


RECORDED = Path(__file__).parents[2] / "notebooks" / "recorded_study.db"
STORED = [
    ("trial_user_attributes", "value_json"),
    ("study_user_attributes", "value_json"),
    ("trials", "state"),
    ("trial_params", "param_value"),
    ("trial_params", "distribution_json"),
    ("trial_values", "value"),
    ("study_directions", "direction"),
]


def damaged(data, text):
    """A stored value of which a part, or all, is something else."""
    kind = data.draw(st.sampled_from(["cut", "none", "other", "part"]))
    if kind == "cut":
        return text[: data.draw(st.integers(0, len(text)))]
    if kind == "none":
        return None
    if kind == "other":
        return json.dumps(data.draw(VALUES))
    try:
        place = value = json.loads(text)
    except ValueError:
        return "other"
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(VALUES)
            break
        place = place[key]
    return json.dumps(value)


@pytest.mark.long
@settings(FILES, max_examples=15)
@given(data=st.data())
def test_a_study_with_anything_in_one_place_is_shown_or_refused(tmp_path, data):
    path = tmp_path / "study.db"
    path.write_bytes(RECORDED.read_bytes())
    table, column = data.draw(st.sampled_from(STORED))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
        row, text = data.draw(st.sampled_from(rows))
        changed = (damaged(data, str(text)), row)
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", changed)
    with contextlib.suppress(AutotuneError), failing_in_one_line(storage_url(path)):
        frame, view = load_study(path), open_view(str(path))
        assert make_page(view, frame).startswith("<!doctype html>")


BLOCK = st.fixed_dictionaries(
    {
        "num_steps": VALUES,
        "num_samples": VALUES,
        "num_units": VALUES,
        "duration_s": VALUES,
        "wait_s": VALUES,
    }
) | st.fixed_dictionaries(
    {
        "num_steps": st.integers(-1, 5),
        "num_samples": st.integers(-1, 5),
        "num_units": st.floats(),
        "duration_s": st.floats(),
        "wait_s": st.floats(),
    }
)
ANSWERS = st.one_of(
    st.binary(max_size=50),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["blocks", "ready", "failed"])},
        optional={
            "blocks": st.lists(BLOCK, max_size=2) | VALUES,
            "settling": VALUES,
            "devices": VALUES,
            "copy_s": VALUES,
            "cause": VALUES,
            "message": VALUES,
            "error": VALUES,
        },
    ).map(lambda value: json.dumps(value).encode()),
)


@FILES
@given(answer=ANSWERS)
def test_whatever_a_broken_trial_sends_is_a_sample_or_a_failure(tmp_path, answer):
    ours, theirs = socket.socketpair()
    other = Connection(theirs.detach())
    trial = Trial(
        Channel(Connection(ours.detach())),
        ThroughputConfig(batch_size=4),
        Origin(tmp_path / "output").origin,
        mode="fresh",
        restart=lambda: pytest.fail("nothing is to be started"),
        removed_files=[],
    )
    other.send_bytes(answer)
    other.close()
    with contextlib.suppress(TrialFailedError):
        sample = trial.measure(BlockRequest(min_s=0.1), deadline_s=1)
        assert isinstance(sample, Sample)
        if sample.blocks:
            assert math.isfinite(summarise([sample], trial.config).units_per_s)
    trial.close()
