"""Ensembles: each member trains exactly as it would alone."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import with_name, with_options
from interruptions import interrupted_at
from member_runs import assert_same_movement, assert_same_training, ensemble, losses, starts, tokens
from prompt_jax import experiment as experiments
from prompt_jax.config.data import DataConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, check
from prompt_jax.inference import answers, batching
from prompt_jax.inference.evaluation import Evaluation
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models import t5
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.report.metrics_log import read_log
from prompt_jax.training import evaluate, loop
from prompt_jax.training import step as steps
from prompt_jax.training.loop import train
from prompt_jax.training.optimizers import make_optimizer

# --------------------------------------------------------------------------------------------------------------
# A member trains as it would alone


@pytest.mark.slow
def test_members_that_differ_in_every_option_train_as_alone(experiment):
    """They differ in seed, rate, decay, initialization and length. Two lengths need two compiled steps."""
    mixed = ensemble(
        experiment,
        seed=(3, 4, 3),
        learning_rate=(0.3, 0.05, 0.1),
        weight_decay=(1e-5, 1e-2, 0.0),
        init=("vocab", "uniform", "labels"),
        length=(4, 6, 4),
    )
    setup, _ = train(mixed)
    assert [[member.number for member in group] for group in setup.groups] == [[0, 2], [1]]
    for number, alone in enumerate(experiments.members(mixed)):
        alone = with_name(alone, f"alone{number}")
        train(alone)
        assert_same_training(alone, mixed, number)


@pytest.fixture(scope="module")
def wide():
    """Return a random T5, wide enough for Adafactor to factor the second moment of a prompt of 130."""
    config = t5.T5Config(
        vocab_size=64, d_model=128, d_kv=16, d_ff=64, num_heads=2, encoder_layers=1, decoder_layers=1, dropout_rate=0.1
    )
    rng = np.random.default_rng(0)
    params: dict = {}
    for row in t5.parameters(config):
        *parents, leaf = row.path.split("/")
        node = params
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = jnp.asarray(0.2 * rng.standard_normal((row.layers or 1, *row.shape), np.float32))
        if row.layers is None:
            node[leaf] = node[leaf][0]
    for side in ("encoder", "decoder"):
        params[side]["layers"] = (params[side]["layers"]["0"],)
    return config, params


def members_of(wide, rates):
    """Return states, batches [E, B, ...] and keys of members with these learning rates, and one member's step."""
    config, params = wide
    rng, members = np.random.default_rng(1), len(rates)
    ids = rng.integers(3, 64, (members, 4, 9)).astype(np.int32)
    batch = {
        "inputs": ids[..., :6],
        "inputs_mask": np.arange(6) < rng.integers(1, 7, (members, 4, 1)),
        "decoder_inputs": np.pad(ids[..., 6:8], ((0, 0), (0, 0), (1, 0))),
        "targets": ids[..., 6:],
        "target_mask": np.ones((members, 4, 3), bool),
    }
    states = []
    for rate in rates:
        optimizer = steps.frozen_base(make_optimizer(OptimizerConfig(learning_rate=rate), 100))
        tokens = jnp.asarray(rng.standard_normal((130, 128), np.float32))
        states.append(steps.TrainState.create({"encoder_tokens": tokens}, optimizer))
    step = steps.make_train_step(config, PromptTuning(), optimizer, dropout=True)
    return states, params, jax.tree.map(jnp.asarray, batch), jax.random.split(jax.random.key(2), members), step


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def prompt_of(state):
    return state.trainable["prompt"]["encoder_tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("group", (None, 1, 2, 5))
def test_factored_adafactor_does_not_couple_members(wide, group):
    """Adafactor factors the second moment from 128 rows and columns on, and clips by whole tensors."""
    states, frozen, batch, keys, step = members_of(wide, (0.3, 0.01, 5.0))
    mixed, step_alone = stacked(states), jax.jit(step)
    step_together = jax.jit(steps.vmap_members(step, group=group))
    assert any(leaf.shape == (3, 130) for leaf in jax.tree.leaves(mixed.opt_state)), "it is factored"
    starts = [prompt_of(state) for state in states]
    for _ in range(3):
        mixed, metrics = step_together(mixed, frozen, batch, keys)
        for i in range(3):
            states[i], alone = step_alone(states[i], frozen, jax.tree.map(lambda x, i=i: x[i], batch), keys[i])
            assert metrics["loss"][i] == pytest.approx(float(alone["loss"]), rel=1e-5)
    for i, (state, first) in enumerate(zip(states, starts, strict=True)):
        movement = prompt_of(state) - first
        np.testing.assert_allclose(prompt_of(mixed)[i] - first, movement, atol=1e-3 * np.abs(movement).max())


def test_an_optimizer_of_stacked_members_would_couple_them():
    """Without vmap over members, Adafactor factors 130 small prompts across members."""
    optimizer = make_optimizer(OptimizerConfig(), 10)
    prompts, gradients = jax.random.normal(jax.random.key(0), (2, 130, 20, 128))
    gradients *= jnp.geomspace(1e-3, 10.0, 130)[:, None, None]

    def update(gradient, prompt):
        return optimizer.update(gradient, optimizer.init(prompt), prompt)[0]

    alone = update(gradients[7], prompts[7])
    np.testing.assert_allclose(jax.vmap(update)(gradients, prompts)[7], alone, rtol=1e-4, atol=1e-6)
    assert np.abs(update(gradients, prompts)[7] - alone).max() > 0.1


@pytest.mark.slow
def test_groups_change_nothing(experiment):
    """Members in groups of two, with one left over, compared with all at once."""
    whole, grouped = with_name(ensemble(experiment, size=3), "whole"), ensemble(experiment, size=3, group=2)
    train(whole)
    train(grouped)
    first = starts(whole)
    for member in range(3):
        np.testing.assert_allclose(losses(grouped, member), losses(whole, member), rtol=1e-5)
        assert_same_movement(tokens(grouped)[member], tokens(whole)[member], first[member])


@pytest.mark.slow
def test_a_bank_has_a_prompt_for_each_task(experiment, tmp_path, monkeypatch):
    """Two tasks with different labels and lengths.

    Dropout is off, because its masks depend on the shape of the batch, and the shorter batches are padded.
    """
    monkeypatch.setattr(batching, "EVAL_BUCKETS", 1)  # little to compile
    tasks = tmp_path / "bank.py"
    tasks.write_text(BANK)
    bank = dataclasses.replace(
        with_options(experiment, "train", steps=3, dropout_rate=0.0),
        data=DataConfig(buckets=1),
        ensemble=EnsembleConfig(task=("bank_a", "bank_b")),
    )
    setup, _ = train(bank, tasks=tasks)
    for part in ("inputs", "targets"):  # the shorter batches of a step are padded
        rows = [getattr(member.tasks[0].examples["train"], part) for member in setup.members]
        assert len({max(map(len, own)) for own in rows}) == 2
    actual = [metadata for _, metadata in read_prompts(bank.folder / "last.npz")]
    assert [each.task for each in actual] == ["bank_a", "bank_b"]
    assert [each.format.labels for each in actual] == [("negative", "positive"), ("a good film", "a bad film")]
    for number, alone in enumerate(experiments.members(bank)):
        alone = with_name(alone, f"alone{number}")
        train(alone, tasks=tasks)
        assert_same_training(alone, bank, number, tasks)


BANK = """
import functools
import seqio, tensorflow as tf
from prompt_jax import add_task
from prompt_jax.task_format import TaskFormat

def rows(split, shuffle_files, labels, repeat):
    texts = [("good fun " if i % 2 else "bad acting ") * (1 + i % repeat) for i in range(24)]
    return tf.data.Dataset.from_tensor_slices({"text": texts, "label": [labels[i % 2] for i in range(24)]})

for name, labels, repeat in (("a", ("negative", "positive"), 3), ("b", ("a good film", "a bad film"), 7)):
    read = functools.partial(rows, labels=labels, repeat=repeat)
    source = seqio.FunctionDataSource(read, splits=("train", "validation"))
    add_task(f"bank_{name}", source, TaskFormat("{text}", labels, input_length=64, target_length=10))
"""


# --------------------------------------------------------------------------------------------------------------
# Members that end before the others


# --------------------------------------------------------------------------------------------------------------
# Files of a run, and resuming it


@pytest.mark.slow
def test_a_resumed_ensemble_is_bit_identical(experiment):
    whole = with_name(ensemble(experiment, length=(4, 6, 4), group=1), "whole")
    train(whole)
    cut = ensemble(experiment, length=(4, 6, 4), group=1)
    with interrupted_at(10):  # in the fifth step, between its two groups
        train(cut)
    train(cut)
    for file in ("last.npz", "best.npz"):
        for ours, theirs in zip(tokens(cut, file), tokens(whole, file), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_resumed_ensemble_remembers_which_members_have_ended(experiment, monkeypatch):
    """Of the members of length 4, one continues and one has stopped. Of those of length 6, one has diverged and one has
    stopped, so their step runs no more. The checkpoint records all of this."""
    options = with_options(experiment, "train", patience=1, eval_every=2)
    options = with_options(options, "optimizer", name="adamw", weight_decay=0.0)
    cut = ensemble(options, length=(4, 6, 4, 6), learning_rate=(0.01, 3e38, 1e-30, 1e-30))
    whole = with_name(cut, "whole")
    first = starts(cut)

    def distances(model, prompts, *args, **options):
        """Return scores that are the distances prompts have moved."""
        actual = [np.asarray(prompt.encoder_tokens.embeddings) for prompt in prompts]
        moved = [min(np.abs(own - x).max() for x in first if x.shape == own.shape) for own in actual]
        return [Evaluation({"accuracy": float(score)}, [], None, np.zeros(0), loss=1.0) for score in moved]

    monkeypatch.setattr(evaluate, "evaluate_members", distances)
    _, expected = train(whole)
    assert [each.status for each in expected.members] == ["training", "diverged", "stopped early", "stopped early"]
    assert [each.steps for each in expected.members] == [6, 0, 2, 2]
    with interrupted_at(6):  # two groups in each of the first two steps, one in the third and the fourth
        train(cut)
    assert max(int(path.name) for path in (cut.folder / "checkpoints").iterdir()) == 2
    _, progress = train(cut)
    assert progress.members == expected.members
    for file in ("last.npz", "best.npz"):
        for ours, theirs in zip(tokens(cut, file), tokens(whole, file), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    ours, theirs = ([{**line, "seconds": 0} for line in read_log(run.folder)] for run in (cut, whole))
    assert ours == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 3, "learning_rate": (0.1, 0.2)}, "ensemble.learning_rate has 2 values for 3 members: give 3, or one"),
        ({"size": 0}, "ensemble.size must be positive"),
        ({"size": 2, "group": 0}, "ensemble.group must be positive"),
        ({"learning_rate": (0.1, -1.0)}, r"optimizer.learning_rate must be positive, not -1.0 \(member 1\)"),
    ],
)
def test_impossible_ensembles(experiment, change, message):
    with pytest.raises(ConfigError, match=message):
        check(ensemble(experiment, **change))


def test_too_many_devices(experiment):
    asked = dataclasses.replace(ensemble(experiment, size=8), mesh=MeshConfig(ensemble=len(jax.devices()) + 1))
    with pytest.raises(ConfigError, match="mesh.model 1 asks for 2 devices, and there are 1"):
        loop.prepare(asked)


# --------------------------------------------------------------------------------------------------------------
# Several devices, in a separate process


@pytest.mark.slow
def test_members_over_eight_devices(experiment, tmp_path, monkeypatch):
    """Training needs no collective and gives the same members as one device. Evaluation batches are sharded."""
    monkeypatch.setattr(batching, "EVAL_BUCKETS", 1)  # little to compile
    spread = ensemble(with_options(experiment, "train", steps=3, eval_batch_size=20), size=8)
    one = with_name(spread, "one")
    train(one)
    (tmp_path / "config.json").write_text(experiments.to_json(spread))
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, __file__, str(tmp_path / "config.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    actual = json.loads(done.stdout.splitlines()[-1])
    assert actual["devices"] == 8 and actual["collectives"] == []
    assert actual["shards"] == 8 and actual["share"] == pytest.approx(1 / 8)
    assert "9 members cannot be divided over mesh.ensemble 8" in actual["refused"]
    first = starts(one)
    for member in range(8):
        np.testing.assert_allclose(losses(spread, member), losses(one, member), rtol=2e-4)
        assert_same_movement(tokens(spread)[member], tokens(one)[member], first[member])
    # 96 rows (an example with a member's prompt), at most 20 per batch, rounded up to 24, a multiple of the devices.
    assert actual["batches"] == [[24, 3, 3]] * 8, "rows of a batch, and a device's of its inputs and its answers"
    alone = [validation(one, member) for member in range(8)]
    assert alone == [validation(spread, member) for member in range(8)]
    assert actual["texts"][0] == actual["texts"][1] and len(set(actual["texts"][0])) > 1
    for placed, whole in (actual["log_probabilities"], actual["label_scores"]):
        np.testing.assert_allclose(placed, whole, rtol=1e-4)


def validation(experiment: Experiment, member: int) -> list[float]:
    lines = read_log(experiment.folder)
    return [line["validation/accuracy"] for line in lines if line["member"] == member and "seconds" in line]


def on_eight_devices(config: Path) -> dict:
    """Train an ensemble over the devices of this process, for the test above."""
    batching.EVAL_BUCKETS = 1
    experiment = dataclasses.replace(experiments.load_experiment(config), mesh=MeshConfig(ensemble=-1))
    setup = loop.prepare(experiment)
    batch = list(map(setup.place, next(setup.batches)))
    text = setup.step.lower(setup.states[0], setup.model.params, batch[0], setup.keys[0]).compile().as_text()
    leaf = prompt_of(setup.states[0])
    starts_of_setup = setup.trainable(setup.states)
    nine = dataclasses.replace(experiment, ensemble=EnsembleConfig(size=9))
    try:
        loop.prepare(nine)
        refused = ""
    except ConfigError as error:
        refused = str(error)
    batches, real = [], answers.generate_scored

    def spy(params, config, batch, *rest, **options):
        generated = real(params, config, batch, *rest, **options)
        parts = (array.addressable_shards[0].data.shape[0] for array in (batch["inputs"], generated.tokens))
        batches.append([len(batch["inputs"]), *parts])
        return generated

    answers.generate_scored = spy
    train(experiment)
    answers.generate_scored = real

    # The base on all devices and on one.
    examples, prompts = setup.members[0].tasks[0].examples["validation"], setup.make_prompts(starts_of_setup)
    stacked, ids = batching.stack_with_ids(prompts[:3])
    ids = ids[np.arange(len(examples)) % 3]
    alone = dataclasses.replace(setup.model, params=jax.device_put(setup.model.params, jax.devices()[0]))
    both = [batching.Rows(base, stacked, examples.inputs, ids, batch_size=5) for base in (setup.model, alone)]
    given = [answers.generate_answers(rows, 6) for rows in both]
    ranked = [np.array(answers.score_labels(rows, [("no", "yes")] * len(rows))) for rows in both]
    kinds = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
    return {
        "devices": jax.device_count(),
        "collectives": [kind for kind in kinds if kind in text],
        "shards": len(leaf.addressable_shards),
        "share": leaf.addressable_shards[0].data.size / leaf.size,
        "refused": refused,
        "batches": batches,
        "texts": [each.texts for each in given],
        "log_probabilities": [each.log_probabilities.tolist() for each in given],
        "label_scores": [each.tolist() for each in ranked],
    }


if __name__ == "__main__":
    print(json.dumps(on_eight_devices(Path(sys.argv[1]))))
