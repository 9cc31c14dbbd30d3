"""The adaptive search in a study of Optuna's own."""

import optuna
import pytest

from autotune.config import ThroughputConfig
from autotune.optimizer.optuna_sampler import AdaptiveSampler
from autotune.space import Space

from .test_adaptive import law

AXES = {
    "batch_size": (1, 2, 4, 8, 16, 32, 64, 128),
    "num_workers": (0, 1, 2, 4),
    "prefetch_factor": (2, 4),
    "num_threads": (1, 2),
}
BASELINE = ThroughputConfig(batch_size=4, num_threads=2)


def suggest(trial):
    settings = {name: trial.suggest_categorical(name, values) for name, values in AXES.items()}
    if not settings["num_workers"]:
        settings["prefetch_factor"] = None
    return ThroughputConfig(**settings)


def objective(trial):
    config = suggest(trial)
    if not config.num_workers:
        trial.set_user_attr("data_wait_share", 0.004 / law(config))
    trial.set_user_attr("measured_s", 2.0)
    return 1.0 / law(config)


def make_study(baseline=BASELINE):
    sampler = AdaptiveSampler(Space(axes=AXES), baseline, usable_cores=2)
    return optuna.create_study(direction="maximize", sampler=sampler)


def test_the_baseline_comes_first_and_the_best_is_found_among_few():
    study = make_study()
    study.optimize(objective, n_trials=25)
    assert suggest(optuna.trial.FixedTrial(study.trials[0].params)) == BASELINE
    best = max(1.0 / law(suggest(optuna.trial.FixedTrial(t.params))) for t in study.trials)
    space = Space(axes=AXES).configurations(BASELINE)
    assert best > 0.97 / min(map(law, space))


def test_where_the_baseline_is_not_in_the_space_nothing_is_suggested_over_and_over():
    study = make_study(ThroughputConfig(batch_size=48))
    study.optimize(objective, n_trials=12)
    suggested = [suggest(optuna.trial.FixedTrial(trial.params)) for trial in study.trials]
    assert len(set(suggested)) > 6


def test_where_everything_fails_everything_is_tried():
    def fails(trial):
        suggest(trial)
        raise ValueError

    study = make_study()
    study.optimize(fails, n_trials=8, catch=(ValueError,))
    tried = {suggest(optuna.trial.FixedTrial(trial.params)) for trial in study.trials}
    assert len(tried) == 8


def test_what_runs_elsewhere_is_not_suggested_at_the_same_time():
    study = make_study()
    assert len({suggest(study.ask()) for _ in range(4)}) == 4


def test_what_fails_is_not_suggested_again():
    def fails(trial):
        if suggest(trial) != BASELINE:
            raise ValueError
        return 100.0

    study = make_study()
    study.optimize(fails, n_trials=8, catch=(ValueError,))
    failed = [suggest(optuna.trial.FixedTrial(t.params)) for t in study.trials[1:] if not t.values]
    assert len(set(failed)) == len(failed)


def test_other_parameters_are_drawn():
    study = make_study()
    trial = study.ask()
    assert 0 <= trial.suggest_float("dropout", 0.0, 0.5) <= 0.5
    assert suggest(trial).batch_size in AXES["batch_size"]
    study.tell(trial, 5.0)
    assert study.best_value == pytest.approx(5.0)


def test_what_needs_workers_does_not_tell_configurations_without_any_apart():
    axes = {"num_workers": (0, 1), "in_order": (False, True)}
    study = optuna.create_study(
        direction="maximize",
        sampler=AdaptiveSampler(Space(axes=axes), BASELINE, usable_cores=2),
    )
    seen = set()

    def rate(trial):
        workers, in_order = (trial.suggest_categorical(name, axes[name]) for name in axes)
        seen.add((workers, in_order or not workers))
        raise ValueError

    study.optimize(rate, n_trials=3, catch=(ValueError,))
    assert seen == {(0, True), (1, True), (1, False)}


def test_collectors_are_suggested_by_their_names():
    axes = {"batch_size": (4, 8), "gc": ("default", "frozen", "raised")}
    study = optuna.create_study(
        direction="maximize",
        sampler=AdaptiveSampler(Space(axes=axes), BASELINE, usable_cores=2),
    )
    rates = {"default": 100.0, "frozen": 200.0, "raised": 190.0}
    seen = []

    def rate(trial):
        trial.suggest_categorical("batch_size", axes["batch_size"])
        seen.append(trial.suggest_categorical("gc", axes["gc"]))
        return rates[seen[-1]]

    study.optimize(rate, n_trials=4)
    assert seen[0] == "default"
    assert "frozen" in seen
