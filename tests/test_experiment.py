"""Configurations: files, overrides, JSON, and errors that name the field."""

import dataclasses
import inspect
import json
import math
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_jax import experiment as experiments
from prompt_jax.cli.train import choose_method
from prompt_jax.config.data import DataConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.config.train import TrainConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, check
from prompt_jax.methods import (
    METHODS,
    AdapterTuning,
    FullTuning,
    LastLayersTuning,
    MultitaskPromptTuning,
    PrefixTuning,
    PromptTuning,
)

ROOT = Path(__file__).parents[1]


CONFIGS = sorted((ROOT / "configs").rglob("*.py"))


def test_all_configs_are_found():
    tracked = subprocess.run(["git", "ls-files", "-z", "configs"], cwd=ROOT, capture_output=True, text=True).stdout
    assert {ROOT / name for name in tracked.split("\0") if name.endswith(".py")} <= set(CONFIGS)
    assert {path.parent.name for path in CONFIGS} >= {"configs", "prefix_tuning", "results"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
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
    offsets = {path.stem: experiments.load_experiment(path).optimizer for path in CONFIGS}
    assert [name for name, own in offsets.items() if own.decay_offset] == ["sst2"]


def test_the_tasks_of_configs_exist():
    from prompt_jax.data.registry import discover_tasks, find_task, mixture_rates

    known = set(discover_tasks(ROOT / "tasks"))
    for path in CONFIGS:
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
        prompt=PromptTuning(length=length, init_range=init_range),
        train=TrainConfig(patience=patience),
    )
    assert experiments.from_json(experiments.to_json(experiment)) == experiment


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a configuration"), ("[]", "not a configuration"), ('{"prompt": {"lenght": 1}}', "prompt.lenght")],
)
def test_invalid_configurations_are_errors(text, message):
    with pytest.raises(ConfigError, match=message):
        experiments.from_json(text)


def test_a_bucket_is_no_folder():
    with pytest.raises(ConfigError, match="runs: s3:/bucket/runs: expected a folder or gs://BUCKET/..."):
        check(experiments.Experiment(runs=Path("s3://bucket/runs")))


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("prompt", {"length": 0}, "prompt.length must be positive, not 0"),
        ("prompt", {"init": "file"}, "needs prompt.init_file"),
        ("prompt", {"init_member": 1}, "prompt.init_member needs prompt.init 'file'; it is 1"),
        ("prompt", {"init": "file", "init_file": Path("a.npz"), "init_member": -1}, "init_member must be zero or pos"),
        ("prompt", {"init": "text"}, "needs prompt.init_text"),
        ("prompt", {"init_labels": ("a", " ")}, r"init_labels must be without empty words, not \['a', ' '\]"),
        ("prompt", {"init": "vocab", "init_labels": ("a",)}, "prompt.init_labels needs prompt.init 'labels'"),
        ("prompt", {"init_range": (1.0, 1.0)}, "prompt.init_range must be a lower and a higher value, not"),
        ("prompt", {"init_range": (-math.inf, 1.0)}, "prompt.init_range must be finite, not"),
        ("train", {"batch_size": 10, "accumulate": 4}, "train.accumulate must divide train.batch_size: 10"),
        ("train", {"dropout_rate": 1.0}, r"train.dropout_rate must be in \[0, 1\), not 1.0"),
        ("train", {"seed": 2**63}, r"train.seed must be from 0 to 2\*\*63 - 1, not"),
        ("optimizer", {"clip_norm": math.inf}, "optimizer.clip_norm must be finite, not inf"),
        ("optimizer", {"learning_rate": math.nan}, "optimizer.learning_rate must be finite, not nan"),
        ("optimizer", {"learning_rate": 0.0}, "optimizer.learning_rate must be positive, not 0"),
        ("optimizer", {"warmup_steps": 2**31}, r"optimizer.warmup_steps must be below 2\*\*31, as JAX counts steps"),
        ("optimizer", {"decay_offset": -(2**31)}, r"optimizer.decay_offset must be below 2\*\*31"),
        ("train", {"steps": 2**31}, r"train.steps must be below 2\*\*31"),
        ("mesh", {"data": 0}, "mesh.data must be positive, or -1 for all remaining devices, not 0"),
        ("mesh", {"data": -1, "model": -1}, "mesh.data and mesh.model are both -1"),
        ("ensemble", {"size": 0}, "ensemble.size must be positive, not 0"),
        ("ensemble", {"size": 10**30}, "ensemble.size must be at most 4096, not 1000"),
        ("ensemble", {"size": 3, "seed": (1, 2)}, "ensemble.seed has 2 values for 3 members"),
        ("data", {"train_examples": 0}, "data.train_examples must be positive, not 0"),
        ("data", {"subset_seed": -1}, "data.subset_seed must be zero or positive, not -1"),
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"init": "labels"},
            "prompt.init must be 'uniform' or 'normal' or 'zero' or 'text' or 'file' or null, not 'labels'",
        ),
        ({"length": "50"}, "prompt.length must be int, not '50'"),
        ({"method": "prefx"}, "prompt.method must be soft_prompt, prefix, .* not 'prefx'"),
        ({"lenght": 1}, "unknown field prompt.lenght; the fields are .*length, sites"),
    ],
)
def test_a_methods_options_are_named(values, message):
    text = json.dumps({"prompt": {"method": "prefix", **values}})
    with pytest.raises(ConfigError, match=message):
        experiments.from_json(text)


EARLIER = json.loads("""{"init": "labels", "init_range": [-0.5, 0.5], "init_vocab": 5000, "init_labels": [],
    "init_text": "", "init_file": null, "init_member": null, "init_rest": "vocab", "length": 7, "sites": [],
    "placement": "before", "tie_layers": false, "mlp_width": null, "per_task": null, "task_length": null,
    "mlp_layers": 1, "dropout": 0.0, "shift_positions": true, "layers": 2, "adapter": "houlsby", "adapter_width": 64,
    "adapter_share": null}""")


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({"method": "soft_prompt"}, PromptTuning(length=7)),
        ({"method": "soft_prompt", "per_task": "add"}, MultitaskPromptTuning(length=7)),
        (
            {"method": "prefix", "init": "normal", "sites": ["decoder_self"], "dropout": 0.1},
            PrefixTuning(length=7, sites=("decoder_self",), init="normal", dropout=0.1),
        ),
        ({"method": "adapter", "adapter": "lin"}, AdapterTuning(kind="lin")),
        ({"method": "adapter", "adapter_width": 8}, AdapterTuning(width=8)),
        ({"method": "adapter", "adapter_share": 0.03}, AdapterTuning(share=0.03)),
        ({"method": "last_layers", "layers": 3}, LastLayersTuning(layers=3)),
        ({"method": "full"}, FullTuning()),
    ],
)
def test_configurations_of_earlier_versions_are_read(values, method):
    """They had one set of options for all methods."""
    assert experiments.from_json(json.dumps({"prompt": EARLIER | values})).prompt == method


def test_an_option_that_is_gone_is_named():
    with pytest.raises(ConfigError, match="prompt.mlp_layers is 2, which this version does not support"):
        experiments.from_json(json.dumps({"prompt": EARLIER | {"method": "prefix", "mlp_layers": 2}}))


def test_the_command_line_chooses_the_method():
    experiment = Experiment(prompt=PromptTuning(length=20, init="vocab"))
    chosen, rest = choose_method(experiment, ["--prompt.method", "prefix", "--prompt.dropout", "0.1"])
    assert chosen.prompt == PrefixTuning(length=20) and rest == ["--prompt.dropout", "0.1"]
    assert choose_method(experiment, ["--prompt.method=adapter"])[0].prompt == AdapterTuning()
    with pytest.raises(ConfigError, match="--prompt.method needs a name: soft_prompt, prefix"):
        choose_method(experiment, ["--prompt.method"])


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
    for part in (
        Experiment,
        DataConfig,
        TrainConfig,
        EnsembleConfig,
        experiments.ModelConfig,
        experiments.OptimizerConfig,
        experiments.MeshConfig,
        *METHODS.values(),
    ):
        own = inspect.getsource(part)
        for name in part.__annotations__:
            if name in ("name", "per_task", "replaces_base"):  # not options
                continue
            after = own.split(f"    {name}: ", 1)[1].split("\n", 1)[1].lstrip()
            assert after.startswith('"""') or dataclasses.is_dataclass(getattr(part, name)), f"{part.__name__}.{name}"


# --------------------------------------------------------------------------------------------------------------
# Members of an ensemble


def test_a_single_prompt_is_an_ensemble_of_one():
    experiment = Experiment(data=DataConfig(task="t"))
    assert experiments.members(experiment) == (experiment,)
    assert experiments.settings((experiment,)) == [{}]


def test_members_have_single_values_and_are_no_ensembles():
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


def test_without_a_size_the_lists_determine_it():
    members = experiments.members(Experiment(ensemble=EnsembleConfig(seed=(1,), weight_decay=(0.0, 0.1, 0.2))))
    assert [each.optimizer.weight_decay for each in members] == [0.0, 0.1, 0.2]
    assert {each.train.seed for each in members} == {1}


def test_a_member_that_cannot_be_is_named():
    experiment = Experiment(data=DataConfig(task="t"), ensemble=EnsembleConfig(init=("vocab", "text")))
    with pytest.raises(ConfigError, match=r"needs prompt.init_text \(member 1\)"):
        check(experiment)


def test_a_value_that_the_method_does_not_take_is_refused():
    experiment = Experiment(
        data=DataConfig(task="t"), prompt=PrefixTuning(), ensemble=EnsembleConfig(init=("normal", "vocab"))
    )
    with pytest.raises(ConfigError, match="ensemble.init: prompt.init must be 'uniform' or .*, not 'vocab'"):
        check(experiment)


@pytest.mark.parametrize("method", ("adapter", "last_layers", "full"))
@pytest.mark.parametrize("lists", ({"length": (3, 4)}, {"init": ("vocab",)}, {"init_member": (0, 1)}))
def test_lists_of_options_that_the_method_lacks_are_errors(method, lists):
    experiment = Experiment(data=DataConfig(task="t"), prompt=METHODS[method]())
    check(experiment)
    with pytest.raises(ConfigError, match=f"ensemble.{[*lists][0]} sets prompt.*{method}' does not have"):
        check(dataclasses.replace(experiment, ensemble=EnsembleConfig(**lists)))


def test_an_ensemble_survives_json():
    experiment = Experiment(ensemble=EnsembleConfig(init=("vocab", "labels"), learning_rate=(0.1, 3.0), group=2))
    assert experiments.from_json(experiments.to_json(experiment)) == experiment
    with pytest.raises(ConfigError, match=r"ensemble.init must be .*'nonsense'"):
        experiments.from_json('{"ensemble": {"init": ["nonsense"]}}')


@pytest.mark.parametrize(
    ("prompt", "named"),
    [(PrefixTuning(), "'prefix'"), (PromptTuning(mlp_width=8), "'soft_prompt' with prompt.mlp_wid")],
)
def test_a_rate_in_units_of_the_embeddings_needs_virtual_tokens(prompt, named):
    rates = OptimizerConfig(rate_unit="embedding_rms")
    with pytest.raises(ConfigError, match=f"optimizer.rate_unit 'embedding_rms' needs .* not {named}"):
        check(Experiment(data=DataConfig(task="t"), optimizer=rates, prompt=prompt))
    check(Experiment(data=DataConfig(task="t"), optimizer=rates))
