"""Configurations: files, overrides, JSON, and errors that name the field."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_jax import experiment as experiments
from prompt_jax.config.checks import check
from prompt_jax.config.data import DataConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.config.train import TrainConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_builds_an_experiment(path):
    experiment = experiments.load_experiment(path)
    check(experiment)
    assert experiment.name == path.stem


def test_one_config_reproduces_the_prompt_tuning_code():
    """`sst2-demo.sh`: checkpoint 1,100,000 to step 1,150,000, T5X's batch of 128, labels, lengths."""
    experiment = experiments.load_experiment(ROOT / "configs" / "sst2.py")
    assert experiment.optimizer == OptimizerConfig(learning_rate=0.3, decay_offset=-1_100_000)
    assert (experiment.train.steps, experiment.train.batch_size, experiment.train.dropout_rate) == (50_000, 128, 0.1)
    assert (experiment.prompt.length, experiment.prompt.init_labels) == (100, ("positive", "negative"))
    assert (experiment.data.input_length, experiment.data.target_length) == (512, 8)
    offsets = {path.stem: experiments.load_experiment(path).optimizer for path in (ROOT / "configs").rglob("*.py")}
    assert [name for name, own in offsets.items() if own.decay_offset] == ["sst2"]


def test_the_tasks_of_configs_are_there():
    from prompt_jax.data.registry import discover_tasks, find_task, mixture_rates

    known = set(discover_tasks(ROOT / "tasks"))
    for path in sorted((ROOT / "configs").rglob("*.py")):
        experiment = experiments.load_experiment(path)
        trained = {member.data.task for member in experiments.members(experiment)} - {None}
        named = {name for name in trained if not mixture_rates(name)} | set(experiment.data.test_tasks)
        assert named <= known, path
        assert all("test" in find_task(name).splits for name in experiment.data.test_tasks), path


@given(
    length=st.integers(1, 1000),
    init_range=st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
    labels=st.lists(st.text()).map(tuple),
    train=st.none() | st.text("abc/.", min_size=1).map(Path),
    patience=st.none() | st.integers(1, 9),
)
def test_json_is_exact(length, init_range, labels, train, patience):
    experiment = Experiment(
        data=DataConfig(train=train, labels=labels),
        prompt=PromptConfig(length=length, init_range=init_range),
        train=TrainConfig(patience=patience),
    )
    assert experiments.from_json(experiments.to_json(experiment)) == experiment


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a configuration"), ("[]", "not a configuration"), ('{"prompt": {"lenght": 1}}', "prompt.lenght")],
)
def test_what_is_no_configuration_is_said(text, message):
    with pytest.raises(ConfigError, match=message):
        experiments.from_json(text)


def test_a_bucket_is_no_folder():
    with pytest.raises(ConfigError, match="runs: s3:/bucket/runs: expected a folder, or gs://BUCKET/..."):
        check(experiments.Experiment(runs=Path("s3://bucket/runs")))


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("prompt", {"length": 0}, "prompt.length must be positive, not 0"),
        ("prompt", {"init": "file"}, "needs prompt.init_file"),
        ("prompt", {"init_member": 1}, "it is 1, and prompt.init is 'labels'"),
        ("prompt", {"init": "file", "init_file": Path("a.npz"), "init_member": -1}, "it is -1, and prompt.init is"),
        ("prompt", {"mlp_layers": 2}, "prompt.mlp_layers is of the MLP that prompt.mlp_width asks for"),
        ("prompt", {"shift_positions": False}, "prompt.shift_positions is of prompt.method 'prefix'"),
        ("prompt", {"init": "text"}, "needs prompt.init_text"),
        ("prompt", {"init_labels": ("a", " ")}, r"prompt.init_labels has an empty word: \['a', ' '\]"),
        ("prompt", {"init": "vocab", "init_labels": ("a",)}, "prompt.init_labels needs prompt.init 'labels'"),
        ("prompt", {"method": "prefix", "init_labels": ("a",)}, "prompt.init_labels is of prompt.method 'soft_prompt'"),
        (
            "prompt",
            {"method": "full", "init": "file", "init_file": Path("a.npz")},
            "prompt.init 'file' is of prompt.method",
        ),
        ("prompt", {"method": "adapter", "init": "text", "init_text": "a"}, "prompt.init 'text' is of prompt.method"),
        ("prompt", {"method": "full", "init_file": Path("a.npz")}, "init_file is of .* 'soft_prompt' or 'prefix', and"),
        (
            "prompt",
            {"method": "last_layers", "init_text": "a"},
            "prompt.init_text is of prompt.method 'soft_prompt' or",
        ),
        ("prompt", {"method": "last_layers", "init_member": 0}, "prompt.init_member is of .* and it is 'last_layers'"),
        ("prompt", {"method": "adapter", "adapter_share": 1.0}, "prompt.adapter_share must be below 1, not 1.0"),
        (
            "prompt",
            {"method": "adapter", "adapter_share": 0.03, "adapter_width": 7},
            "adapter_share is 0.03 and prompt.adapter_width is 7: give one of them",
        ),
        ("train", {"batch_size": 10, "accumulate": 4}, "train.accumulate must divide train.batch_size: 10"),
        ("train", {"dropout_rate": 1.0}, "train.dropout_rate must be in"),
        ("optimizer", {"clip_norm": math.inf}, "optimizer.clip_norm must be finite, and is inf"),
        ("optimizer", {"learning_rate": math.nan}, "optimizer.learning_rate must be positive, not nan"),
        ("prompt", {"init_range": (-math.inf, 1.0)}, "prompt.init_range goes from the lower to the higher value, not"),
        ("data", {"train_examples": 0}, "data.train_examples must be positive, not 0"),
        ("data", {"subset_seed": -1}, "data.subset_seed must not be negative, and is -1"),
        ("data", {"task": None}, "give either data.task, or files"),
        ("data", {"train": Path("a.csv")}, "give either data.task, or files"),
        ("data", {"test_tasks": ("t",)}, "data.test_tasks names t again"),
        ("data", {"test_tasks": ("a", "b", "a")}, "data.test_tasks names a again"),
    ],
)
def test_impossible_values_are_refused(part, values, message):
    experiment = Experiment(data=DataConfig(task="t"))
    with pytest.raises(ConfigError, match=message):
        changed = dataclasses.replace(getattr(experiment, part), **values)
        check(dataclasses.replace(experiment, **{part: changed}))


@pytest.mark.parametrize("name", ("", "..", ".", "a/b", "/tmp"))
def test_a_runs_name_is_no_path(name):
    with pytest.raises(ConfigError, match="a folder's name without a path"):
        check(Experiment(name=name, data=DataConfig(task="t")))


def test_files_that_fail_are_named(tmp_path):
    for content, message in (
        ("experiment = 1", "must define `experiment`, an Experiment; it has int"),
        ("1 / 0", "ZeroDivisionError"),
        ("import nothing_of_the_kind", "nothing_of_the_kind"),
    ):
        (tmp_path / "c.py").write_text(content)
        with pytest.raises(ConfigError, match=message):
            experiments.load_experiment(tmp_path / "c.py")
    with pytest.raises(ConfigError, match="no configuration file"):
        experiments.load_experiment(tmp_path / "none.py")


def test_every_field_is_documented():
    """Each has a text below it, which `--help` shows."""
    source = (ROOT / "prompt_jax" / "config.py").read_text()
    for part in (
        Experiment,
        DataConfig,
        PromptConfig,
        TrainConfig,
        EnsembleConfig,
        experiments.ModelConfig,
        experiments.OptimizerConfig,
        experiments.MeshConfig,
    ):
        own = source.split(f"class {part.__name__}:", 1)[1]
        for field in dataclasses.fields(part):
            after = own.split(f"    {field.name}: ", 1)[1].split("\n", 1)[1].lstrip()
            assert after.startswith('"""') or dataclasses.is_dataclass(field.default), f"{part.__name__}.{field.name}"


# --------------------------------------------------------------------------------------------------------------
# Members of an ensemble


def test_a_single_prompt_is_an_ensemble_of_one():
    experiment = Experiment(data=DataConfig(task="t"))
    assert experiments.members(experiment) == (experiment,)
    assert experiments.settings((experiment,)) == [{}]


def test_members_have_their_own_values_and_are_no_ensembles():
    lists = EnsembleConfig(size=2, learning_rate=(0.1,), length=(5, 7), task=("a", "b"))
    first, second = experiments.members(Experiment(train=TrainConfig(seed=3), ensemble=lists))
    assert (first.optimizer.learning_rate, second.optimizer.learning_rate) == (0.1, 0.1)
    assert (first.prompt.length, second.prompt.length) == (5, 7)
    assert (first.train.seed, second.train.seed) == (3, 4) and (first.data.task, second.data.task) == ("a", "b")
    assert first.ensemble == second.ensemble == EnsembleConfig()
    assert experiments.settings((first, second)) == [
        {"train.seed": 3, "prompt.length": 5, "data.task": "a"},
        {"train.seed": 4, "prompt.length": 7, "data.task": "b"},
    ]
    assert experiments.settings_text({"train.seed": 3, "prompt.length": 5}) == "seed 3, length 5"


def test_without_a_size_there_are_as_many_as_values():
    members = experiments.members(Experiment(ensemble=EnsembleConfig(seed=(1,), weight_decay=(0.0, 0.1, 0.2))))
    assert [each.optimizer.weight_decay for each in members] == [0.0, 0.1, 0.2]
    assert {each.train.seed for each in members} == {1}


def test_a_member_that_cannot_be_is_named():
    experiment = Experiment(data=DataConfig(task="t"), ensemble=EnsembleConfig(init=("vocab", "text")))
    with pytest.raises(ConfigError, match=r"needs prompt.init_text \(member 1\)"):
        check(experiment)


@pytest.mark.parametrize("method", ("adapter", "last_layers", "full"))
@pytest.mark.parametrize("lists", ({"length": (3, 4)}, {"init": ("vocab",)}, {"init_member": (0, 1)}))
def test_lists_of_prompts_are_for_nothing_else(method, lists):
    """A prompt's own length and initialization may stay in a configuration with another method on top."""
    experiment = Experiment(data=DataConfig(task="t"), prompt=PromptConfig(method=method, length=3, init="vocab"))
    check(experiment)
    with pytest.raises(ConfigError, match=f"ensemble.{[*lists][0]} is of .* 'prefix', and it is '{method}'; leave it"):
        check(dataclasses.replace(experiment, ensemble=EnsembleConfig(**lists)))


def test_an_ensemble_survives_json():
    experiment = Experiment(ensemble=EnsembleConfig(init=("vocab", "labels"), learning_rate=(0.1, 3.0), group=2))
    assert experiments.from_json(experiments.to_json(experiment)) == experiment
    with pytest.raises(ConfigError, match=r"ensemble.init must be .*'nonsense'"):
        experiments.from_json('{"ensemble": {"init": ["nonsense"]}}')
