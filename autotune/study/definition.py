"""What a run is asked to do: a study's definition, from YAML and from the command line."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from autotune.axes import AxisValue
from autotune.errors import BadInputError
from autotune.files import read_yaml
from autotune.measurement import StartMode
from autotune.space import check_axis
from autotune.study.training_length import TrainingLength, parse_training_length
from autotune.validation import validate

# Rounds that leave it open whether there is a gain are repeated up to so many times as often.
MOST_ROUNDS = 2
# Of what the adaptive search finds, so much is confirmed beside the baseline at most.
MOST_CANDIDATES = 2
# The explanation may take so long; of a budget, no more than a share is kept for it.
EXPLANATION_S, EXPLANATION_SHARE = 15.0, 0.1

_Seconds = Annotated[float, Field(gt=0, le=86400 * 30, allow_inf_nan=False)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class SamplerName(enum.StrEnum):
    """How the next configuration is chosen."""

    AUTO = "auto"
    GRID = "grid"
    RANDOM = "random"
    TPE = "tpe"
    GP = "gp"


class AxisSet(enum.StrEnum):
    """Which axes are searched beside those that are named."""

    DEFAULT = "default"
    EXTENDED = "extended"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyDefinition:
    """One study: the command, the space, and how long to measure.

    Attributes:
        name: Name of the study in its storage.
        command: Program and arguments of the training loop.
        axes: Values for some axes; the others come from the machine (see `space.default_axes`).
        axis_set: Whether settings that help some loops only are searched as well (see
            `space.extended_axes`).
        sampler: How the next configuration is chosen.
        budget_s: Wall seconds for everything, confirmation included.
        training: How long the whole training is, where that is known: hours are told, and the
            search goes on for as long as it pays in that training.
        max_trials: Most trials of the search; None for no limit.
        start_mode: Fork or fresh; None forks where that is safe.
        block_s: Shortest duration of a block of steps.
        max_blocks: Blocks given to a configuration that keeps up with the best so far, or fewer
            where these are long; AUTO decides
            by itself.
        confirm_s: Seconds of steps in each confirming run.
        confirm_rounds: Confirming runs for each candidate and for the baseline; up to twice as many
            while they do not tell whether there is a gain.
        num_candidates: Configurations that are confirmed beside the baseline; AUTO needs one or
            two.
        allow_busy: Whether to measure on a machine that other processes keep busy.
        start_deadline_s: Longest time from a start to the loop's first batch.
        patch: Whether the command calls autotune nowhere: what it trains is found, and gets its
            settings, by a start-up hook.
        patch_batch_size: Whether the hook may change the batch size, and with it what is learned.
        gpu_headroom: Share of a GPU's memory that the chosen settings must leave free, 0 to 1.
        seed: For samplers that draw, and for the order of confirming runs.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: _Name
    command: tuple[str, ...]
    axes: dict[str, tuple[AxisValue, ...]] = dataclasses.field(default_factory=dict)
    axis_set: AxisSet = AxisSet.DEFAULT
    sampler: SamplerName = SamplerName.AUTO
    budget_s: _Seconds = 3600.0
    training: TrainingLength | None = None
    max_trials: Annotated[int, Field(ge=1)] | None = None
    start_mode: StartMode | None = None
    block_s: _Seconds = 0.25
    max_blocks: Annotated[int, Field(ge=1, le=1000)] = 6
    confirm_s: _Seconds = 2.5
    confirm_rounds: Annotated[int, Field(ge=1, le=1000)] = 3
    num_candidates: Annotated[int, Field(ge=1, le=100)] = 3
    allow_busy: bool = False
    start_deadline_s: _Seconds = 600.0
    patch: bool = False
    patch_batch_size: bool = False
    gpu_headroom: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def explanation_s(self) -> float:
        """Time kept for the explanation."""
        return min(EXPLANATION_S, EXPLANATION_SHARE * self.budget_s)

    def __post_init__(self) -> None:
        if not self.command or not self.command[0]:
            raise BadInputError("command: must name a program")
        if self.start_mode is StartMode.SWAP:
            raise BadInputError(
                "start_mode: must be fork or fresh, not swap: trials that are not forked go on in "
                "a running process by themselves"
            )
        for name, values in self.axes.items():
            check_axis(name, values)
        if self.patch_batch_size and not self.patch:
            raise BadInputError("patch_batch_size: goes with patch: set this to true as well")
        if self.patch and not self.patch_batch_size and "batch_size" in self.axes:
            raise BadInputError(
                "axis batch_size: --patch leaves the batch size alone, since it changes what is "
                "learned: add --patch-batch-size, or remove the axis"
            )

    @property
    def command_line(self) -> str:
        """The command as it would be typed."""
        return shlex.join(self.command)

    @property
    def runnable_command(self) -> tuple[str, ...]:
        """The command with its program resolved, see `runnable`."""
        return runnable(self.command)


def runnable(command: tuple[str, ...]) -> tuple[str, ...]:
    """A command with its program resolved; `python` is the Python that runs autotune.

    Raises:
        BadInputError: The program is not there.
    """
    program = command[0]
    if program in ("python", "python3"):
        return (sys.executable, *command[1:])
    found = shutil.which(program)
    if found is None:
        raise BadInputError(f"command: {program} is no program that can be run: check its path")
    return (found, *command[1:])


def read_definition(path: Path, overrides: dict[str, Any]) -> StudyDefinition:
    """The definition in a study's YAML file, with `overrides` from the command line on top.

    In the file, `command` may be a line or a list, `budget` a duration such as `4m`, and `training`
    a length such as `20 epochs`.

    Raises:
        BadInputError: The file cannot be read or breaks a rule.
    """
    data = read_yaml(path)
    data.setdefault("name", path.stem)
    if isinstance(data.get("command"), str):
        data["command"] = _split(data["command"], path)
    if "budget" in data:
        data["budget_s"] = parse_duration(str(data.pop("budget")), source=f"{path}: budget")
    if "training" in data:
        length = parse_training_length(str(data["training"]), source=f"{path}: training")
        data["training"] = dataclasses.asdict(length)
    return _with_overrides(data, overrides, source=str(path))


def define_for_command(command: tuple[str, ...], overrides: dict[str, Any]) -> StudyDefinition:
    """The definition of a study of `command`, named after it and told apart by a digest of it.

    Raises:
        BadInputError: An override breaks a rule.
    """
    scripts = [Path(part).stem for part in command if part.endswith((".py", ".sh"))]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", (scripts or [Path(command[0]).stem])[0]).strip("_-")
    patched = [name for name in ("patch", "patch_batch_size") if overrides.get(name)]
    parts = (*command, str(Path.cwd()), *patched)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
    data = {"name": f"{stem or 'study'}-{digest}", "command": list(command)}
    return _with_overrides(data, overrides, source="command line")


def default_study_file(directory: Path) -> Path | None:
    """The study that `[tool.autotune] study` in this directory's pyproject.toml names, if any.

    Raises:
        BadInputError: The file is no TOML, or names something else than a path.
    """
    pyproject = directory / "pyproject.toml"
    if not pyproject.is_file():
        return None
    try:
        settings = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{pyproject}: cannot be read: {error}") from error
    study = settings.get("tool", {}).get("autotune", {}).get("study")
    if study is None:
        return None
    if not isinstance(study, str):
        raise BadInputError(f"{pyproject}: tool.autotune.study must be a path, not {study!r}")
    return directory / study


def parse_duration(text: str, *, source: str) -> float:
    """Seconds in a duration: `90`, `90s`, `3m`, `1h30m`.

    Raises:
        BadInputError: The text is something else, or zero.
    """
    match = re.fullmatch(
        r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip()
    )
    hours, minutes, seconds = (float(part or 0) for part in (match.groups() if match else "000"))
    total_s = hours * 3600 + minutes * 60 + seconds
    if match is None or total_s <= 0:
        raise BadInputError(f"{source}: must be a duration such as 90s, 3m or 1h30m, not {text!r}")
    return total_s


def _with_overrides(
    data: dict[str, Any], overrides: dict[str, Any], *, source: str
) -> StudyDefinition:
    axes = data.get("axes")
    if isinstance(axes, dict):
        overrides = {**overrides, "axes": {**axes, **overrides.get("axes", {})}}
    return validate(StudyDefinition, {**data, **overrides}, source=source)


def _split(line: str, path: Path) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise BadInputError(f"{path}: command: {error}") from error
