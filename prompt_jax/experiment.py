"""The experiment: all options of a run. Imports nothing heavy.

A file in `configs/` builds one `Experiment`, named `experiment`. The command line overrides any field of it.
"""

import dataclasses
import json
import operator
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_jax.config.constraints import check_fields
from prompt_jax.config.convert import ConversionError, from_dict
from prompt_jax.config.data import DataConfig
from prompt_jax.config.decoding import Decoding
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.model import ModelConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.config.train import TrainConfig
from prompt_jax.errors import ConfigError, UserError
from prompt_jax.methods import Method, PromptTuning, method_from_dict, method_to_dict
from prompt_jax.storage.paths import parse_path


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment. `runs/NAME/` is its record."""

    name: str = "experiment"
    """Name of the run and of its folder."""
    runs: Path = Path("runs")
    """Folder of all runs, also on Google Cloud Storage: `gs://BUCKET/runs`."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompt: Method = PromptTuning()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    mesh: MeshConfig = MeshConfig()
    decoding: Decoding = Decoding()
    """How answers are generated in the final evaluation. Validation during training uses greedy decoding."""

    @property
    def folder(self) -> Path:
        return parse_path(self.runs) / self.name


# The lists of an ensemble, and the field that each sets.
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
    """Return for each member the experiment that would train it alone.

    Raises:
      ConfigError: a list has neither one value nor one per member, the method does not have the list's option, or the
        option does not take a value of the list.
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
        section, field = ENSEMBLE_LISTS[name]
        options = getattr(experiment, section)
        if values and not hasattr(options, field):
            raise ConfigError(
                f"ensemble.{name} sets {section}.{field}, which the method {experiment.prompt.name!r} does not have; "
                "leave it out"
            )
        for value in values:  # the option may take fewer values than the list: a prefix has no init 'vocab'
            try:
                from_dict(type(options), {field: value}, section)
            except ConversionError as error:
                raise ConfigError(f"ensemble.{name}: {error}") from None
    if not ensemble.seed:
        lists["seed"] = tuple(range(experiment.train.seed, experiment.train.seed + size))
    alone = dataclasses.replace(experiment, ensemble=EnsembleConfig(), mesh=MeshConfig())

    def member(number: int) -> Experiment:
        result = alone
        for name, (section, field) in ENSEMBLE_LISTS.items():
            if values := lists[name]:
                value = values[number if len(values) > 1 else 0]
                replaced: Any = dataclasses.replace(getattr(result, section), **{field: value})
                result = dataclasses.replace(result, **{section: replaced})
        return result

    return tuple(map(member, range(size)))


def group_members(alone: Sequence[Experiment]) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of the members of each group: those whose trainable parameters have equal shapes."""
    numbers: dict[int, list[int]] = {}
    for number, member in enumerate(alone):
        numbers.setdefault(getattr(member.prompt, "length", 0), []).append(number)
    return tuple(map(tuple, numbers.values()))


def settings(experiments: tuple[Experiment, ...]) -> list[dict[str, Any]]:
    """Return for each member the fields in which members differ, with the member's values: `{"train.seed": 1}`."""

    def values(section: str, field: str) -> list[Any]:
        return [getattr(getattr(each, section), field, None) for each in experiments]

    varied = [
        f"{section}.{field}" for section, field in ENSEMBLE_LISTS.values() if len(set(values(section, field))) > 1
    ]
    return [{name: operator.attrgetter(name)(each) for name in varied} for each in experiments]


def settings_text(values: Mapping[str, Any]) -> str:
    """Return a member's settings as text: `seed 1, learning_rate 0.3`."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in values.items())


def load_experiment(path: Path) -> Experiment:
    """Return the experiment of a configuration file, or of the `config.json` that a run wrote.

    Raises:
      ConfigError: there is no such file, it fails, or it does not define an `experiment`.
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
    if not isinstance(built.prompt, Method):
        raise ConfigError(f"{path}: prompt must be a method such as PromptTuning(), not {built.prompt!r}")
    return _from_dict(_to_dict(built))


def to_json(experiment: Experiment) -> str:
    """Return the configuration as JSON, as the run's folder holds it."""
    return json.dumps(_to_dict(experiment), indent=2, default=str) + "\n"


def from_json(text: str) -> Experiment:
    """Read the output of `to_json`, also of earlier versions.

    Raises:
      ConfigError: not JSON, an unknown field, or a value of another type.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a configuration: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"not a configuration: a JSON {type(values).__name__}, not an object")
    return _from_dict(values)


def check(experiment: Experiment) -> None:
    """Check all values before anything is loaded.

    Raises:
      ConfigError: names the field, its value, and what would be right.
    """
    check_fields(experiment.ensemble, "ensemble")
    check_fields(experiment.mesh, "mesh")
    alone = members(experiment)
    if len(rest := [axis for axis, size in experiment.mesh.sizes.items() if size == -1]) > 1:
        raise ConfigError(f"mesh.{rest[0]} and mesh.{rest[1]} are both -1; only one can take the remaining devices")
    tests = experiment.data.test_tasks
    if repeated := (set(tests) & {member.data.task for member in alone}) | {n for n in tests if tests.count(n) > 1}:
        name = sorted(map(str, repeated))[0]
        raise ConfigError(f"data.test_tasks names {name} again; the tasks that are trained on are always tested")
    for number, member in enumerate(alone):
        try:
            _check_member(member)
        except ConfigError as error:
            raise ConfigError(f"{error} (member {number})" if len(alone) > 1 else str(error)) from None


def _check_member(experiment: Experiment) -> None:
    for name in ("data", "prompt", "optimizer", "train"):
        check_fields(getattr(experiment, name), name)
    train, data = experiment.train, experiment.data
    if experiment.name in ("", "..") or experiment.name != Path(experiment.name).name:
        raise ConfigError(f"name must be a folder's name without a path, not {experiment.name!r}")
    try:
        parse_path(experiment.runs)
    except UserError as error:
        raise ConfigError(f"runs: {error}") from error
    experiment.prompt.check()
    if experiment.optimizer.rate_unit == "embedding_rms" and not experiment.prompt.trains_virtual_tokens:
        mlp = " with prompt.mlp_width" if getattr(experiment.prompt, "mlp_width", None) else ""
        raise ConfigError(
            "optimizer.rate_unit 'embedding_rms' needs a method that trains virtual tokens, such as 'soft_prompt', not "
            f"{experiment.prompt.name!r}{mlp}; give an absolute rate"
        )
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"train.accumulate must divide train.batch_size: {train.batch_size} examples cannot be processed "
            f"in {train.accumulate} equal parts"
        )
    if data.task is None and (experiment.prompt.per_task or data.task_names):
        option = "data.task_names" if data.task_names else f"prompt.method {experiment.prompt.name!r}"
        raise ConfigError(f"{option} needs data.task, the name of a task or mixture, instead of files")
    if (data.task is None) == (data.train is None and data.test is None and data.validation is None):
        raise ConfigError("give either data.task, or files: data.train, and optionally data.validation and data.test")


def differences(a: dict[str, Any], b: dict[str, Any], at: str = "") -> list[str]:
    """Return the names of the fields in which two configurations, as JSON objects, differ."""
    names = []
    for name in sorted(set(a) | set(b)):
        x, y = a.get(name), b.get(name)
        if isinstance(x, dict) and isinstance(y, dict):
            names += differences(x, y, f"{at}{name}.")
        elif x != y:
            names.append(f"{at}{name}")
    return names


def _to_dict(experiment: Experiment) -> dict[str, Any]:
    return dataclasses.asdict(experiment) | {"prompt": method_to_dict(experiment.prompt)}


def _from_dict(values: dict[str, Any]) -> Experiment:
    if isinstance(values.get("train"), dict):  # from an earlier version
        values["train"].pop("save_errors", None)
    others = {name: value for name, value in values.items() if name != "prompt"}
    try:
        experiment = from_dict(Experiment, others)
        return dataclasses.replace(experiment, prompt=method_from_dict(values.get("prompt", {})))
    except ConversionError as error:
        raise ConfigError(str(error)) from None
