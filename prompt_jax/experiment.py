"""The experiment: all options of a run. Imports nothing heavy.

A file in `configs/` builds one `Experiment`, named `experiment`; the command line overrides any field of it.
"""

import builtins
import dataclasses
import json
import operator
import runpy
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_jax.config.data import DataConfig
from prompt_jax.config.decoding import Decoding
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.model import ModelConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.config.train import TrainConfig
from prompt_jax.errors import ConfigError
from prompt_jax.storage.paths import parse_path


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment; `runs/NAME/` is the record of it."""

    name: str = "experiment"
    """Name of the run, and of its folder."""
    runs: Path = Path("runs")
    """Folder of all runs, also on a bucket of Google Cloud: `gs://BUCKET/runs`."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    mesh: MeshConfig = MeshConfig()
    decoding: Decoding = Decoding()
    """Of the answers that are scored when training has ended. Validation takes the most probable token each time."""

    @property
    def folder(self) -> Path:
        return parse_path(self.runs) / self.name


PROMPT_METHODS = ("soft_prompt", "prefix")
# Those that train copies of the base's own parameters, and add none.
REPLACING_METHODS = ("last_layers", "full")

# The lists of an ensemble, and the field that each of them is for.
ENSEMBLE_LISTS = {
    "seed": ("train", "seed"),
    "learning_rate": ("optimizer", "learning_rate"),
    "weight_decay": ("optimizer", "weight_decay"),
    "length": ("prompt", "length"),
    "init": ("prompt", "init"),
    "init_member": ("prompt", "init_member"),
    "task": ("data", "task"),
}


def members(experiment: Experiment) -> tuple[Experiment, ...]:
    """The experiment of each member: one that trains alone what the member is trained to in the ensemble.

    Raises:
      ConfigError: a list that is neither of one value nor of one for each member.
    """
    ensemble = experiment.ensemble
    lists: dict[str, tuple[Any, ...]] = {name: getattr(ensemble, name) for name in ENSEMBLE_LISTS}
    size = max(1, *map(len, lists.values())) if ensemble.size is None else ensemble.size
    if size < 1:
        raise ConfigError(f"ensemble.size must be positive, not {size}")
    for name, values in lists.items():
        if len(values) not in (0, 1, size):
            raise ConfigError(
                f"ensemble.{name} has {len(values)} values for {size} members: give {size}, or one for all of them"
            )
    if not ensemble.seed:
        lists["seed"] = tuple(range(experiment.train.seed, experiment.train.seed + size))
    alone = dataclasses.replace(experiment, ensemble=EnsembleConfig(), mesh=MeshConfig())

    def member(number: int) -> Experiment:
        result = alone
        for name, (part, field) in ENSEMBLE_LISTS.items():
            if values := lists[name]:
                value = values[number if len(values) > 1 else 0]
                replaced = dataclasses.replace(getattr(result, part), **{field: value})
                result = dataclasses.replace(result, **{part: replaced})
        return result

    return tuple(map(member, range(size)))


def settings(experiments: tuple[Experiment, ...]) -> list[dict[str, Any]]:
    """For each member, the fields in which the members differ, with its values: `{"train.seed": 1}`."""
    varied = [
        f"{part}.{field}"
        for part, field in ENSEMBLE_LISTS.values()
        if len({getattr(getattr(each, part), field) for each in experiments}) > 1
    ]
    return [{name: operator.attrgetter(name)(each) for name in varied} for each in experiments]


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings of a member as text: `seed 1, learning_rate 0.3`."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in values.items())


def load_experiment(path: Path) -> Experiment:
    """The experiment that a configuration file builds, or that a run wrote down (`config.json`).

    Raises:
      ConfigError: no such file, a file that fails, or one without an `experiment`.
    """
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    if path.suffix == ".json":
        try:
            return from_json(path.read_text())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    try:
        built = runpy.run_path(str(path)).get("experiment")
    except Exception as error:
        raise ConfigError(f"{path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(built, Experiment):
        raise ConfigError(f"{path} must define `experiment`, an Experiment; it has {type(built).__name__}")
    return _build(Experiment, dataclasses.asdict(built), "")


def to_json(experiment: Experiment) -> str:
    """The resolved configuration, as written into the run's folder."""
    return json.dumps(dataclasses.asdict(experiment), indent=2, default=str) + "\n"


def from_json(text: str) -> Experiment:
    """Read what `to_json` wrote, also in earlier versions.

    Raises:
      ConfigError: no JSON, or an unknown field.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a configuration: {error}") from error
    return _build(Experiment, _from_earlier_versions(values), "")


def _from_earlier_versions(values: Any) -> Any:
    """Return the JSON of a configuration without fields that were removed since it was written."""
    if isinstance(values, dict) and isinstance(values.get("train"), dict):
        values["train"].pop("save_errors", None)
    return values


def differences(a: dict[str, Any], b: dict[str, Any], at: str = "") -> list[str]:
    """The fields in which two configurations, as JSON objects, differ."""
    found = []
    for name in sorted(set(a) | set(b)):
        x, y = a.get(name), b.get(name)
        if isinstance(x, dict) and isinstance(y, dict):
            found += differences(x, y, f"{at}{name}.")
        elif x != y:
            found.append(f"{at}{name}")
    return found


def _build(cls: Any, values: Any, at: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"not a configuration: {at or 'the whole'} is a JSON {type(values).__name__}, not an object")
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise ConfigError(f"unknown field {at}{sorted(unknown)[0]}")
    return cls(**{name: _value(hints[name], value, f"{at}{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, at: str) -> Any:
    """A value with the type of its field. JSON has neither dataclasses, tuples nor paths; Python checks nothing."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{at}.")
    # Python makes a typing.Union, and no types.UnionType, of a Literal and None.
    for option in typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,):
        arguments = typing.get_args(option)
        match typing.get_origin(option) or option:
            case types.NoneType if value is None:
                return None
            case typing.Literal if value in arguments:
                return value
            case _ if option is Path and isinstance(value, (str, Path)):
                return parse_path(value)
            case _ if option is float and type(value) in (int, float):
                return float(value)
            case _ if option in (str, int, bool) and type(value) is option:
                return value
            case builtins.tuple if isinstance(value, (list, tuple)):
                kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
                if len(kinds) == len(value):
                    return tuple(_value(kind, item, at) for kind, item in zip(kinds, value, strict=True))
    wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace("pathlib.", "")
    raise ConfigError(f"{at} must be {wanted}, not {value!r}")
