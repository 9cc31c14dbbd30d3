"""What the start-up hook does in a process of the command, as torch and frameworks are imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import wrapt

from autotune.patch.environment import PATCH_VARIABLE, job_of
from autotune.patch_target import PatchTarget

_LOADERS = "torch.utils.data.dataloader"
_OPTIMIZERS = "torch.optim.optimizer"
_GRADIENTS = "torch.autograd"
# By the module of `autotune.integrations`: where the training begins, and what people call it.
_FRAMEWORKS = {
    "transformers": (("transformers.trainer",), "Trainer.train", "transformers.Trainer"),
    "lightning": (
        ("lightning.pytorch.trainer.trainer", "pytorch_lightning.trainer.trainer"),
        "Trainer.fit",
        "Lightning's Trainer",
    ),
}


def install() -> None:
    """Do the job that the environment names, if it does, once torch's modules are imported.

    Nothing of torch may be imported here, or as one of its modules arrives: it is not whole then.
    """
    text = os.environ.get(PATCH_VARIABLE)
    if not text:
        return
    job = job_of(text)
    if job.target is None:
        assert job.notes is not None
        _install_look(Path(job.notes))
    elif job.target.framework is None:
        from autotune.patch.loaders import PatchedLoaders

        _when_imported(_LOADERS, PatchedLoaders(job.target, job.config_path).install)
    else:
        modules, method, _ = _FRAMEWORKS[job.target.framework]
        tuner = _TUNERS[job.target.framework]
        for module in modules:
            _wrap_when_imported(module, method, tuner(job.config_path))


def _install_look(notes: Path) -> None:
    from autotune.patch.observation import Observation

    observation = Observation(notes)
    _when_imported(_LOADERS, observation.watch_loaders)
    _when_imported(_OPTIMIZERS, observation.watch_optimizers)
    _when_imported(_GRADIENTS, observation.watch_gradients)
    for framework, (modules, method, label) in _FRAMEWORKS.items():
        target = PatchTarget(place=label, framework=framework)

        def found(_: Any, __: Any, ___: Any, ____: Any, target: PatchTarget = target) -> None:  # noqa: ANN401
            observation.found(target)

        for module in modules:
            _wrap_when_imported(module, method, found)


def _tune_transformers(path: str | None) -> Any:  # noqa: ANN401
    from autotune.integrations.transformers import tune

    def train(wrapped: Any, trainer: Any, arguments: Any, options: Any) -> Any:  # noqa: ANN401
        if "_autotune_tuned" not in vars(trainer):
            trainer._autotune_tuned = True
            tune(trainer, path)
        return wrapped(*arguments, **options)

    return train


def _tune_lightning(path: str | None) -> Any:  # noqa: ANN401
    from autotune.integrations.lightning import tune

    def fit(
        wrapped: Any,  # noqa: ANN401
        trainer: Any,  # noqa: ANN401
        arguments: Any,  # noqa: ANN401
        options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        names = ("model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path")
        given = {**dict(zip(names, arguments, strict=False)), **options}
        if "_autotune_tuned" not in vars(trainer):
            trainer._autotune_tuned = True
            given["train_dataloaders"] = tune(
                trainer,
                given["model"],
                given.get("train_dataloaders"),
                datamodule=given.get("datamodule"),
                path=path,
            )
        return wrapped(**given)

    return fit


_TUNERS = {"transformers": _tune_transformers, "lightning": _tune_lightning}


def _when_imported(name: str, hook: Any) -> None:  # noqa: ANN401
    wrapt.register_post_import_hook(hook, name)


def _wrap_when_imported(name: str, method: str, wrapper: Any) -> None:  # noqa: ANN401
    _when_imported(name, lambda module: wrapt.wrap_function_wrapper(module, method, wrapper))
