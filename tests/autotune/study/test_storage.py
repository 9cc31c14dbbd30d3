import contextlib
import dataclasses
import sqlite3
import warnings

import optuna
import pandas as pd
import pytest

import autotune
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.measurement import Failure, FailureCause, StartMode, summarise
from autotune.report.dataframe import BLOCK_COLUMNS
from autotune.study.records import Outcome, Phase, read_records
from autotune.study.storage import FileLock, locked_storage, sqlite_path, storage_url
from autotune.study.store import SCHEMA_VERSION, find_study, open_study

from ..made_up import SETTLING, block, sample

CONFIG = ThroughputConfig(batch_size=8, num_workers=2, num_threads=1, pin_memory=True)
PLAIN = ThroughputConfig(batch_size=1)
SAMPLE = sample(
    block(num_steps=2, num_samples=16, num_units=160.0, duration_s=2.0, cpu_s=3.0, ready_change=-1),
    block(num_steps=2, num_samples=16, num_units=160.0, duration_s=2.0, cpu_s=3.0, ready_change=1),
    settling=SETTLING,
    memory_bytes=2**30,
    shared_memory_bytes=2**20,
)
OUTCOME = Outcome(
    measurement=summarise([SAMPLE], CONFIG, steps_per_epoch=100),
    samples=[SAMPLE],
    start_mode=StartMode.FORK,
    start_up_s=0.1,
    duration_s=2.5,
    unit="tokens",
)


@pytest.fixture
def url(tmp_path):
    return storage_url(tmp_path / "some studies" / "a.db")


@pytest.fixture
def store(url):
    return open_study(url, "s", fresh=False)


def test_what_is_stored_is_read_again(store, url):
    first = store.begin(CONFIG, Phase.SEARCH)
    store.complete(first, OUTCOME)
    second = store.begin(PLAIN, Phase.CONFIRM, round_number=2)
    store.fail(second, Failure(cause=FailureCause.KILLED, message="m", output="o"))
    running = store.begin(PLAIN, Phase.SEARCH)
    done, failed, open_ = read_records(find_study(url, "s"))
    assert (done.number, failed.number, open_.number) == (first, second, running)
    assert done.config == CONFIG
    assert done.measurement == OUTCOME.measurement
    assert done.samples == (SAMPLE,)
    assert (done.start_mode, done.start_up_s, done.duration_s) == (StartMode.FORK, 0.1, 2.5)
    assert done.unit == "tokens"
    assert failed.failure == Failure(cause=FailureCause.KILLED, message="m", output="o")
    assert failed.round_number == 2
    assert open_.measurement is None
    assert open_.failure is None


def test_optuna_sees_the_settings_and_the_objective(store, url):
    store.complete(store.begin(CONFIG, Phase.SEARCH), OUTCOME)
    store.complete(store.begin(PLAIN, Phase.SEARCH), OUTCOME)
    study = optuna.load_study(study_name="s", storage=url)
    with_workers, without = study.trials
    assert with_workers.params == {
        "batch_size": 8,
        "num_workers": 2,
        "prefetch_factor": 2,
        "num_threads": 1,
        "pin_memory": True,
        "gc": "default",
        "malloc": "default",
        "in_order": True,
        "cudnn_benchmark": False,
        "multiprocessing_context": "default",
        "matmul_precision": "default",
        "ranks_per_node": 1,
    }
    assert "prefetch_factor" not in without.params
    assert with_workers.value == pytest.approx(80.0)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


def test_trials_of_a_killed_run_are_marked_when_the_study_is_opened(store, url):
    store.begin(CONFIG, Phase.SEARCH)
    (record,) = open_study(url, "s", fresh=False).records()
    assert record.failure.cause is FailureCause.INTERRUPTED


def test_fresh_studies_stand_beside_the_old(url):
    names = [open_study(url, "s", fresh=fresh).name for fresh in (False, True, True, False)]
    assert names == ["s", "s.2", "s.3", "s.3"]
    assert open_study(url, "t", fresh=True).name == "t"
    assert find_study(url, None).study_name == "t"
    with pytest.raises(BadInputError, match="study u: not in .*; there are s, s.2, s.3, t"):
        find_study(url, "u")


def test_a_study_can_be_read_where_nothing_can_be_written(store, url, tmp_path):
    store.complete(store.begin(CONFIG, Phase.SEARCH), OUTCOME)
    path = tmp_path / "some studies" / "a.db"
    path.chmod(0o444)
    frame = autotune.load_study(path)
    assert list(frame["state"]) == ["complete"]


def test_a_frame_has_its_types_whatever_the_study_holds(store, url):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = autotune.load_study(url)
        store.complete(store.begin(CONFIG, Phase.SEARCH), OUTCOME)
        full = autotune.load_study(url)
    assert empty.empty
    assert list(empty.columns) == list(full.columns)
    assert (
        (empty.dtypes.drop(list(BLOCK_COLUMNS)) == full.dtypes.drop(list(BLOCK_COLUMNS)))
        .loc[["number", "samples_per_s", "start_up_s", "num_threads", "started_at"]]
        .all()
    )
    row = full.iloc[0]
    assert row["configuration"] == CONFIG.summary
    assert row["batch_size"] == 8
    assert row["cpu_utilisation"] == pytest.approx(0.75)
    assert row["block_s"] == [2.0, 2.0]
    assert row["steps_per_epoch"] == 100
    assert pd.isna(row["device_memory_bytes"])
    assert row["block_units_per_s"] == [80.0, 80.0]
    assert row["relative_error"] == pytest.approx(0.0)
    assert not row["unsteady"]


@pytest.mark.parametrize("content", [b"this is no database", b""])
def test_what_is_no_study_is_refused(tmp_path, content):
    path = tmp_path / "a.db"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="cannot be opened|holds no study"):
        autotune.load_study(path)


def damaged(figure, text):
    """SQL that puts some text before a stored figure, with a comma in place of it."""
    after = text if not text.endswith(", ") else f'{text}"was": '
    found = f"replace(value_json, '\"{figure}\": ', '\"{figure}\": {after}')"
    return f"UPDATE trial_user_attributes SET value_json = {found} WHERE key = 'measurement'"


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'raw_samples'",
        "UPDATE trial_user_attributes SET value_json = '[]' WHERE key = 'raw_samples'",
        "UPDATE trial_user_attributes SET value_json = '[3]' WHERE key = 'config'",
        "UPDATE study_user_attributes SET value_json = NULL",
        "UPDATE trials SET state = 'LOST'",
        damaged("units_per_s", "0.0, "),
        damaged("measured_s", "Infinity, "),
        damaged("num_steps", "1000000000000000000000"),
    ],
)
def test_a_damaged_study_is_neither_read_nor_gone_on_with(store, url, damage):
    store.complete(store.begin(CONFIG, Phase.SEARCH), OUTCOME)
    with contextlib.closing(sqlite3.connect(sqlite_path(url))) as connection, connection:
        assert connection.execute(damage).rowcount > 0
    with pytest.raises(BadInputError, match="damaged"):
        autotune.load_study(url)
    with pytest.raises(BadInputError, match="damaged"):
        open_study(url, "s", fresh=False).records()


def test_settings_that_a_newer_version_added_do_not_hide_a_study(store, url):
    number = store.begin(CONFIG, Phase.SEARCH)
    store.complete(number, dataclasses.replace(OUTCOME, unit=None))
    assert len(autotune.load_study(url)) == 1


def test_a_study_that_another_version_made_is_refused(url):
    open_study(url, "old", fresh=False)
    study = optuna.load_study(storage=url, study_name="old")
    study.set_user_attr("schema_version", SCHEMA_VERSION - 1)
    with pytest.raises(BadInputError, match="study old: was not made by this version"):
        open_study(url, "old", fresh=False)
    assert open_study(url, "old", fresh=True).name == "old.2"


def test_of_studies_made_later_none_counts(url):
    facts = {"command": ["python", "train.py"], "machine": {"usable_cores": 2}}
    now, later = (open_study(url, name, fresh=False) for name in ("now", "later"))
    for store in (now, later):
        store.set_facts(**facts)
    later.complete(later.begin(CONFIG, Phase.BASELINE), OUTCOME)
    assert now.earlier_records() == ()
    assert later.earlier_records() == ()
    now.complete(now.begin(CONFIG, Phase.BASELINE), OUTCOME)
    assert len(later.earlier_records()) == 1


def test_of_earlier_studies_the_latest_counts_in_which_something_succeeded(url):
    facts = {"command": ["python", "train.py"], "machine": {"usable_cores": 2}}
    names = [("worked", True), ("failed", False), ("now", None)]
    for name, works in names:
        store = open_study(url, name, fresh=False)
        store.set_facts(**facts)
        number = store.begin(CONFIG, Phase.BASELINE) if works is not None else None
        if works:
            store.complete(number, OUTCOME)
        elif number is not None:
            store.fail(number, Failure(cause=FailureCause.CRASHED, message="x"))
    [earlier] = store.earlier_records()
    assert earlier.measurement is not None


@pytest.mark.parametrize(("name", "counts"), [("A", True), ("B", False)])
def test_an_earlier_study_counts_where_the_gpus_are_alike(url, name, counts):
    for study, gpu in (("earlier", "A"), ("now", name)):
        store = open_study(url, study, fresh=False)
        gpus = [{"name": gpu, "memory_bytes": 2**30, "mig_profile": None}]
        store.set_facts(command=["train"], machine={"usable_cores": 2, "gpus": gpus})
        if study == "earlier":
            store.complete(store.begin(CONFIG, Phase.BASELINE), OUTCOME)
    assert bool(store.earlier_records()) == counts


def test_a_file_system_without_locks_is_named(url, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(BadInputError, match="cannot be written: FileSystem does not"):
        locked_storage(url).__enter__()
