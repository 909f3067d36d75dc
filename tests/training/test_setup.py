"""Setup: the loaded splits, the stored parameters, and the initial values, by configuration."""

import dataclasses

import jax
import numpy as np
import pytest

from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_ensemble
from prompt_jax import experiment as experiments
from prompt_jax.config.data import DataConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.data.registry import restore_point
from prompt_jax.errors import ConfigError
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.methods.multitask import MultitaskPromptTuning
from prompt_jax.methods.p_tuning import PTuning
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.prompt_files.io import ModelId
from prompt_jax.task_format import FormatError
from prompt_jax.training.setup import Setup, prepare
from prompt_jax.training.tasks import load_splits


def metadata(setup: Setup, number: int) -> PromptMetadata:
    return setup.prompts[number].metadata(setup.model, 1, {})


@pytest.fixture
def described(tmp_path):
    """Return files with repeated inputs: ten inputs with three texts each."""
    rows = [f"film {i % 10},a good film {'and long ' * (i // 10)}{i % 10}" for i in range(30)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows, ""]))
    files = {"train": tmp_path / "train.csv", "validation": tmp_path / "test.csv", "test": tmp_path / "test.csv"}
    return DataConfig(**files, metrics=("bleu", "nist"), input_length=32, target_length=32)


def test_other_splits_than_training_have_each_input_once(tiny, described):
    splits, task_format = load_splits(described, tiny, {}, None)
    assert {name: len(split) for name, split in splits.items()} == {"train": 30, "validation": 10, "test": 10}
    assert all(len(own) == 3 for own in splits["test"].references)
    assert task_format.metrics == ("bleu", "nist") and task_format.target_length == 32
    limited, _ = load_splits(described, tiny, {"validation": 4, "test": 5}, None)
    assert (
        len(limited["validation"]) == 4
        and len(limited["test"]) == 5
        and limited["validation"].references[0] in splits["validation"].references
    )


def test_low_data_subsets_by_size_and_seed(tiny, described):
    def drawn(**changes):
        splits, _ = load_splits(dataclasses.replace(described, **changes), tiny, {}, None)
        assert len(splits["validation"]) == len(splits["test"]) == 10, "of training alone"
        return set(zip(splits["train"].input_texts, splits["train"].target_texts, strict=True))

    whole, ten, five = drawn(), drawn(train_examples=10), drawn(train_examples=5)
    assert (len(whole), len(ten), len(five)) == (30, 10, 5) and five < ten < whole
    assert drawn(train_examples=10, subset_seed=1) not in (ten, whole)
    assert drawn(train_examples=10) == ten and drawn(train_examples=99) == whole


def test_the_configurations_metrics_replace_the_tasks(tiny, tmp_path, registry_of_tasks):
    (tmp_path / "tasks.py").write_text(TASK)
    config = DataConfig(task="told", input_length=32, target_length=32)
    own, own_format = load_splits(config, tiny, {}, tmp_path / "tasks.py")
    assert own_format.metrics == own["test"].format.metrics == ("bleu",)
    chosen, format_chosen = load_splits(
        dataclasses.replace(config, metrics=("rouge_l", "chrf")), tiny, {}, tmp_path / "tasks.py"
    )
    assert format_chosen.metrics == chosen["test"].format.metrics == ("rouge_l", "chrf")
    assert list(chosen["test"].score(["a film"])) == ["rouge_l", "chrf"]
    with pytest.raises(FormatError, match="ter is better when lower"):
        load_splits(dataclasses.replace(config, metrics=("ter",)), tiny, {}, tmp_path / "tasks.py")


@pytest.mark.parametrize(
    "method",
    [
        PromptTuning(init="text", init_text="a film", init_vocab=99),
        PromptTuning(length=5, mlp_width=7, init_vocab=99),
        MultitaskPromptTuning(length=5, task_part="concatenate", init_vocab=99),
        PTuning(length=5),
        PrefixTuning(length=5, mlp_width=7),
        AdapterTuning(),
        LastLayersTuning(layers=1),
        FullTuning(),
    ],
)
def test_shapes_are_known_before_initialization(tiny, method):
    made = method.initialize(jax.random.key(1), tiny, ["good", "bad"], tasks=2)
    shapes = method.shapes(tiny, ["good", "bad"], tasks=2)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )


@pytest.mark.parametrize("size", [2**40, 2**62])
@pytest.mark.parametrize("method", [PromptTuning(), PrefixTuning(mlp_width=4)], ids=lambda method: method.name)
def test_sizes_that_exceed_the_memory(experiment, method, size):
    """XLA would end the process."""
    method = dataclasses.replace(method, length=size)
    both = dataclasses.replace(experiment, prompt=method, ensemble=EnsembleConfig(size=2))
    told = rf"trainable parameters of 2 members take .* GiB in float32, and there are .*choose smaller .*length {size}"
    with pytest.raises(ConfigError, match=told):
        prepare(both)


def test_stored_parameters_are_those_of_the_files(experiment):
    """Stored parameters are the keys and values of every layer and site, without the MLP."""
    prefix = PrefixTuning(length=4, init="normal", mlp_width=8)
    setup = prepare(dataclasses.replace(experiment, prompt=prefix, ensemble=EnsembleConfig(length=(4, 2))))
    written = jax.tree.leaves(setup.make_prompts(setup.trainable(setup.states)))
    assert setup.stored_parameters == sum(leaf.size for leaf in written) != setup.trained_parameters


def test_members_start_from_those_of_a_file(experiment, tiny, tmp_path):
    """Each member starts from another prompt of the file, or all from one; the same as when trained alone."""
    tokens = np.random.default_rng(0).normal(size=(3, 4, 64)).astype(np.float32)
    said = PromptMetadata(base=ModelId(tiny.name, None, tiny.fingerprint))
    save_ensemble(tmp_path / "source" / "e.npz", [Prompt(VirtualTokens(own)) for own in tokens], [said] * 3)
    start = PromptTuning(length=4, init="file", init_file=tmp_path / "source" / "e.npz")
    transfer = dataclasses.replace(experiment, prompt=start, ensemble=EnsembleConfig(init_member=(2, 0, 1)))
    setup = prepare(transfer)
    for number, source in enumerate((2, 0, 1)):
        alone = prepare(experiments.members(transfer)[number])
        for start in (setup.trainable(setup.states)[number], *alone.trainable(alone.states)):
            np.testing.assert_array_equal(start["prompt"]["encoder_tokens"], tokens[source])
        written = metadata(setup, number)
        assert written.initialization == f"file source/e.npz, member {source}"
        assert written.settings["prompt.init_member"] == source
    one = dataclasses.replace(transfer, ensemble=EnsembleConfig(size=2, init_member=(1,)))
    setup = prepare(one)
    for start in setup.trainable(setup.states):
        np.testing.assert_array_equal(start["prompt"]["encoder_tokens"], tokens[1])
    assert metadata(prepare(experiment), 0).initialization == "vocab"


def test_rates_in_units_of_the_embeddings(experiment):
    """Members have other rates in the same unit. Adafactor's first update moves each number by the rate."""
    options = OptimizerConfig(rate_unit="embedding_rms", weight_decay=0.0)
    run = dataclasses.replace(experiment, optimizer=options, ensemble=EnsembleConfig(seed=(0,), learning_rate=(0.1, 2)))
    setup = prepare(run)
    rms = np.sqrt(np.square(np.asarray(setup.model.params["embedding"])).mean())
    np.testing.assert_allclose(setup.rate_rms, rms, rtol=1e-6)
    start = np.stack([member["prompt"]["encoder_tokens"] for member in setup.trainable(setup.states)])
    (batch,) = next(iter(setup.batches))
    states, _ = setup.step(setup.states[0], setup.model.params, setup.place(batch), setup.keys[0])
    moved = np.asarray(states.trainable["prompt"]["encoder_tokens"]) - start
    sizes = np.sqrt(np.square(moved).mean(axis=(1, 2)))
    np.testing.assert_allclose(sizes, [0.1 * rms, 2 * rms], rtol=1e-3)
    assert prepare(experiment).rate_rms is None


TASK = """
from prompt_jax import add_task, text_source
from prompt_jax.task_format import TaskFormat

add_task(
    "told",
    text_source(lambda split: [("film", "a good film"), ("film", "good")], ("train", "validation", "test")),
    TaskFormat("{source}", metrics=("bleu",)),
    target="target",
)
"""


@pytest.fixture
def registry_of_tasks():
    """Unregister the tasks of a test after it."""
    restore = restore_point()
    yield
    restore()
