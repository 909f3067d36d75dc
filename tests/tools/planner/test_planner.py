"""Tests of the planner without libtpu: it compiles the programs of a run, and counts correctly."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from prompt_jax.checkpoints import demo
from prompt_jax.checkpoints.config_files import model_config, read_config
from prompt_jax.config.data import DataConfig
from prompt_jax.config.decoding import Decoding
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.model import ModelConfig
from prompt_jax.config.train import TrainConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.inference import answers
from prompt_jax.inference.batching import Rows, Shapes, stack_with_ids
from prompt_jax.methods import METHODS
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models import family
from prompt_jax.training import setup as setups
from tools.planner import __main__ as planner
from tools.planner import chips, estimate
from tools.planner.flops import matmul_flops
from tools.planner.programs import PUBLISHED, base_config, programs

ROOT = Path(__file__).resolve().parents[3]


def experiment(name: str, **changes) -> Experiment:
    base = Experiment(
        model=ModelConfig(name=name),
        data=DataConfig(task="any", input_length=32, target_length=8),
        prompt=PromptTuning(length=5),
        train=TrainConfig(batch_size=4, eval_batch_size=6),
    )
    return dataclasses.replace(base, **changes)


# --------------------------------------------------------------------------------------------------------------
# Compiled programs


@pytest.mark.parametrize(
    "kind, method",
    [("t5", "soft_prompt"), ("gpt2", "prefix"), pytest.param("bart", "soft_prompt", marks=pytest.mark.slow)],
)
def test_the_programs_are_those_of_a_run(kind, method, tiny_folders, sentiment_files, tmp_path, monkeypatch):
    """The planner makes the same programs from shapes as a run makes from weights and data."""
    data = DataConfig(**sentiment_files, labels=("negative", "positive"), input_length=32, target_length=8, buckets=1)
    given = experiment(
        str(tiny_folders[kind]),
        runs=tmp_path,
        data=data,
        prompt=METHODS[method](length=5, init="normal"),
        ensemble=EnsembleConfig(size=2, learning_rate=(0.1, 0.3)),
        decoding=Decoding(beams=2),
    )
    setup = setups.prepare(given)
    (batch,) = map(setup.place, next(setup.batches))
    length = max(len(target) for target in setup.members[0].tasks[0].examples["train"].targets)
    longest = dataclasses.replace(data, input_length=batch["inputs"].shape[-1], target_length=length)
    train, generation = programs(dataclasses.replace(given, data=longest), jax.devices()[:1])
    ours = setup.step.lower(setup.states[0], setup.model.params, batch, setup.keys[0])
    assert text(train.lower()) == text(ours)

    seen, real = [], answers.generate_scored

    def spy(*arguments, **options):
        jitted = jax.jit(real, static_argnames=("config", "max_new_tokens", "decoding", "check"))
        seen.append(text(jitted.lower(*arguments, **options)))
        return real(*arguments, **options)

    monkeypatch.setattr(answers, "generate_scored", spy)
    prompts = setup.make_prompts(setup.trainable(setup.states))
    examples = setup.members[0].tasks[0].examples["train"]
    inputs = [np.resize(examples.inputs[0], longest.input_length)] * 3
    stacked, ids = stack_with_ids(prompts)
    shapes = Shapes(6, (longest.input_length,))
    answers.generate_answers(Rows(setup.model, stacked, inputs, ids[[0, 1, 0]], None, shapes), length, given.decoding)
    assert seen == [text(generation.lower())]


def text(lowered) -> str:
    """Return a program's text without the locations of its arguments, which differ without a mesh."""
    stripped = re.sub(r"sdy\.sharding = #sdy\.sharding<@empty_mesh[^>]*>(, )?", "", lowered.as_text())
    return re.sub(r" {}|  sdy\.mesh @empty_mesh .*\n", "", stripped)


def test_sampling_takes_a_key(tiny_folder):
    *_, generation = programs(experiment(str(tiny_folder), decoding=Decoding(temperature=0.7)), jax.devices()[:1])
    assert "tensor<2xui32>" in text(generation.lower()).splitlines()[1]


def test_each_prompt_length_has_a_separate_program(tiny_folder):
    given = experiment(str(tiny_folder), ensemble=EnsembleConfig(length=(3, 7, 3)))
    *train, generation = programs(given, jax.devices()[:1])
    assert [program.name for program in train] == ["training step, 2 x 3", "training step"]
    first, second = (program.lower().as_text() for program in train)
    width = base_config(str(tiny_folder)).d_model
    assert f"tensor<2x3x{width}xf32>" in first and f"tensor<1x7x{width}xf32>" in second
    of_all = generation.lower().as_text()
    assert f"tensor<3x7x{width}xf32>" in of_all and "tensor<3x7xi1>" in of_all


def test_the_planner_raises_the_errors_of_a_run(tiny_folder):
    devices = jax.devices()[:1]
    with pytest.raises(ConfigError, match="mesh.model 2 asks for 2 devices, and there are 1"):
        next(programs(experiment(str(tiny_folder), mesh=MeshConfig(model=2)), devices))
    with pytest.raises(ConfigError, match="'t5-huge' is neither a folder with a config.json nor .*google/t5-v1_1-xxl"):
        next(programs(experiment("t5-huge"), devices))
    several = [SimpleNamespace(process_index=number // 4, platform="tpu") for number in range(8)]
    with pytest.raises(
        ConfigError, match="make 1 devices, but the 2 hosts have 8, and a mesh over several hosts must use all"
    ):
        next(programs(experiment(str(tiny_folder)), several))


@pytest.mark.parametrize("data", [3, 5, 7])
def test_a_mesh_of_chips_with_a_gap_is_refused(data, tiny_folder):
    chips = [
        SimpleNamespace(coords=(x, y, 0), core_on_chip=0, device_kind="TPU v5 lite", platform="tpu", process_index=0)
        for y in range(4)
        for x in range(2)
    ]
    message = f"mesh.data {data} x .* needs {data} of 8 chips, and the first {data} do not form a contiguous block"
    with pytest.raises(ConfigError, match=message):
        next(programs(experiment(str(tiny_folder), mesh=MeshConfig(data=data)), chips))


def test_the_demo_has_the_planned_shape():
    assert base_config("demo") == model_config(demo._CONFIG, {}, source="demo")


def test_smollm2_has_the_planned_shape(smollm2_model_folder):
    raw = read_config(smollm2_model_folder)
    assert base_config("smollm2") == model_config(raw, {}, source="smollm2")


@pytest.mark.parametrize(
    "name, millions",
    [  # from model cards and papers
        *(("google/t5-v1_1-small", 77), ("google/t5-base-lm-adapt", 248), ("google/flan-t5-large", 783)),
        *(("google/t5-v1_1-xl", 2850), ("google/t5-xxl-lm-adapt", 11135)),
        *(("openai-community/gpt2", 124), ("openai-community/gpt2-medium", 355), ("openai-community/gpt2-large", 774)),
        *(("openai-community/gpt2-xl", 1558), ("facebook/bart-large", 406)),
    ],
)
def test_published_shapes_have_the_published_sizes(name, millions):
    assert name in PUBLISHED
    config = base_config(name)
    table = family(config).parameters(config)
    assert round(sum(np.prod(row.shape) * (row.layers or 1) for row in table) / 1e6) == millions


# --------------------------------------------------------------------------------------------------------------
# Operations


def test_flops_by_hand():
    def f(x, w):
        def body(x, _):
            return jax.checkpoint(lambda x: jax.nn.relu(x @ w))(x), None

        x, _ = jax.lax.scan(body, x, None, length=7)
        x = jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: x @ w, x)
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)

    x, w = jax.ShapeDtypeStruct((5, 3), "float32"), jax.ShapeDtypeStruct((3, 3), "float32")
    once = 2 * 5 * 3 * 3
    assert matmul_flops(jax.make_jaxpr(f)(x, w), unknown_trips=4) == (7 + 1 + 4) * once
    mapped = jax.jit(jax.vmap(f, (0, None))).trace(x.update(shape=(2, 5, 3)), w)
    # Under vmap, both branches are computed.
    assert matmul_flops(mapped.jaxpr) == 2 * (7 + 1 + 1) * once


@pytest.mark.parametrize("target", [16, 64])
def test_flops_of_a_training_step_by_hand(target):
    """T5 1.1 small: 8 + 8 layers of width 512, 6 heads of 64, feed-forward 1024, 32128 words.

    Each weight is used twice: in the forward pass, and for the gradient of its input. Weights have no gradient. A
    product of two activations, as in attention, has two gradients.
    """
    data = DataConfig(task="any", input_length=512, target_length=target)
    given = experiment("google/t5-v1_1-small", data=data, prompt=PromptTuning(length=100))
    given = dataclasses.replace(given, model=ModelConfig(given.model.name, remat="full"))
    step = next(programs(given, jax.devices()[:1]))
    d, heads, words, rows, source = 512, 6 * 64, 32128, 4, 612
    attention, feed_forward = 4 * d * heads, 3 * d * 1024
    encoder = 8 * (rows * source * (attention + feed_forward) * 2 + 2 * rows * source * source * heads * 3)
    own = rows * target * (2 * attention + feed_forward) * 2 + 2 * rows * target * target * heads * 3
    if target < 64:  # the key and value matrices are applied on the queries' side
        cross = 2 * rows * target * source * 6 * d * 3
    else:  # keys and values are computed for the source, not the target
        cross = rows * (source - target) * 2 * d * heads * 2 + 2 * rows * target * source * heads * 3
    decoder = 8 * (own + cross)
    by_hand = 2 * (encoder + decoder + rows * target * d * words * 2)
    # The hand count leaves out the norms' sums of squares.
    assert step.model_flops == pytest.approx(by_hand, rel=3e-3)
    assert step.model_flops > by_hand


def test_flops_of_a_model_do_not_depend_on_its_kernels():
    """The gradient of a kernel computes the scores again, which MFU does not count."""
    given = experiment("google/t5-v1_1-small", data=DataConfig(task="any", input_length=128, target_length=8))
    plain, fused = (
        next(
            programs(dataclasses.replace(given, model=dataclasses.replace(given.model, attention=name)), jax.devices())
        )
        for name in ("plain", "fused")
    )
    assert plain.model_flops == fused.model_flops and plain.kernels == {} and fused.kernels


def test_flops_of_a_mesh_include_all_devices(tiny_folder):
    """Inside `shard_map`, shapes are per device."""
    mesh = jax.sharding.AbstractMesh((4, 2), ("ensemble", "model"))
    own = jax.sharding.PartitionSpec("ensemble")
    mapped = jax.shard_map(
        lambda x: x @ x, mesh=mesh, in_specs=own, out_specs=own, axis_names={"ensemble"}, check_vma=False
    )
    jaxpr = jax.make_jaxpr(mapped)(jax.ShapeDtypeStruct((8, 3, 3), "float32"))
    assert matmul_flops(jaxpr) == 8 * 2 * 3**3


# --------------------------------------------------------------------------------------------------------------
# Chips


def slice_of(kind: str, *sizes: int) -> chips.Topology:
    places = [(x, y, z) for z in range((*sizes, 1)[2]) for y in range(sizes[1]) for x in range(sizes[0])]
    return chips.Topology("test", chips.CHIPS[kind], sizes, tuple(SimpleNamespace(coords=place) for place in places))


@pytest.mark.parametrize(
    "kind, sizes, group, links, hops",
    [
        ("v5e", (16, 16), tuple(range(16)), 2, 8),  # a closed ring
        ("v5e", (16, 16), tuple(range(8)), 1, 7),  # half of a ring is a line
        ("v5e", (4, 4), (0, 4, 8, 12), 1, 3),  # axes of a part of a pod are not closed
        ("v5e", (16, 16), (), 4, 16),  # all devices, along both axes
        ("v4", (2, 2, 4), (0, 1), 1, 1),
        ("v5p", (4, 4, 4), (0, 16, 32, 48), 2, 2),
        ("v5p", (2, 4, 4), (0, 2, 4, 6), 1, 3),
    ],
)
def test_collectives_use_the_existing_links(kind, sizes, group, links, hops):
    where = slice_of(kind, *sizes)
    count, link, size = len(group) or len(where.devices), where.chip.link, 1e9

    def seconds(name: str) -> float:
        return where.collective_seconds(name, size, group, list(where.devices)) - hops * chips.HOP

    assert seconds("all-gather") == pytest.approx(size * (count - 1) / count / (links * link))
    assert seconds("all-reduce") == pytest.approx(2 * seconds("all-gather"))
    assert seconds("reduce-scatter") == pytest.approx(seconds("all-gather"))
    assert seconds("collective-permute") == pytest.approx(size / (links * link))


@pytest.mark.parametrize("name", ["v5litepod-16", "v5e:16", "v5e:4x4x4", "v4:4x4", "v9:2x2", "v5e:axb", "v5e:-4x4"])
def test_an_unknown_topology(name):
    with pytest.raises(chips.TopologyError, match="not a topology; expected .* v4:4x4x4, v5e:4x4, v5p:4x4x4, v6e:4x4"):
        chips.topology(name)


# --------------------------------------------------------------------------------------------------------------
# Estimates


def test_out_of_memory():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (168.06G) exceeds "
        "available HBM (15.75G)."
    )
    actual = estimate.out_of_memory("training step", said)
    assert actual == estimate.TooLarge("training step", 168.06 * 2**30, 15.75 * 2**30)
    older = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 905.50M of 512.00M hbm. Exceeded by 1G"
    assert estimate.out_of_memory("x", older) == estimate.TooLarge("x", 905.5 * 2**20, 512 * 2**20)
    assert estimate.out_of_memory("x", "INTERNAL: something (1G) exceeds available HBM (2G)") is None
    assert estimate.out_of_memory("x", "RESOURCE_EXHAUSTED: out of vmem") is None


def test_an_estimate_of_a_compiled_program():
    """A matrix product of known size on one chip."""
    x, w = jax.ShapeDtypeStruct((64, 128), "float32"), jax.ShapeDtypeStruct((128, 256), "float32")
    lowered = jax.jit(lambda x, w: x @ w).lower(x, w)
    program = SimpleNamespace(
        name="product",
        lower=lambda: lowered,
        devices=["chip"],
        model_flops=2 * 64 * 128 * 256,
        unknown_trips=1,
        kernels={},
    )
    actual = estimate.estimate(program, slice_of("v5e", 1, 1))
    assert (actual.arguments, actual.outputs) == (4 * (64 * 128 + 128 * 256), 4 * 64 * 256)
    assert actual.flops == 2 * 64 * 128 * 256 and actual.traffic == actual.arguments + actual.outputs
    assert actual.compute == pytest.approx(actual.flops / 197e12) and actual.transfer == pytest.approx(
        actual.traffic / 819e9
    )
    assert actual.bound == "memory" and actual.seconds == actual.transfer and actual.collectives == {}
    assert actual.utilization == pytest.approx(actual.compute / actual.transfer)
    longer = dataclasses.replace(actual, interconnect=1.0)
    assert longer.bound == "interconnect" and longer.seconds == 1 + actual.transfer


def test_without_libtpu_the_error_says_how_to_install_it():
    code = """if True:
        import runpy, sys
        sys.modules["libtpu"] = None
        sys.argv = ["planner", "configs/demo.py", "--topology", "v5e:4x4"]
        runpy.run_module("tools.planner", run_name="__main__")
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install '.[tpu]'" in done.stderr


def test_the_command_line_chooses_the_method(capsys):
    words = ["configs/demo.py", "--topology", "v5e:4x4", "--prompt.method", "last_layers", "--prompt.layers", "3"]
    assert planner.parse([str(ROOT / words[0]), *words[1:]]).experiment.prompt == LastLayersTuning(layers=3)
    with pytest.raises(SystemExit):
        planner.main(["--help"])
    assert "--topology" in capsys.readouterr().out
