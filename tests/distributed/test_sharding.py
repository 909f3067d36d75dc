"""Meshes and shardings. Tests on eight devices run this file as a program in a separate process."""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from adapters import random_text
from prompt_jax.checkpoints import weights
from prompt_jax.checkpoints.load import load_model
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.data.member_batches import MemberBatches
from prompt_jax.distributed import sharding
from prompt_jax.distributed.sharding import (
    RULES,
    make_mesh,
    named_sharding,
    parameter_sharding,
    read_to_devices,
    to_devices,
    to_host,
)
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, check
from prompt_jax.inference.answers import score_targets
from prompt_jax.inference.batching import Rows
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models import family, gpt2, llama, t5
from prompt_jax.models import fused_attention as kernels
from prompt_jax.models import fused_feed_forward as feed_forwards
from prompt_jax.models.attention import KeyValues, attend
from prompt_jax.models.layers import feed_forward
from prompt_jax.models.rope import Rope
from prompt_jax.training.optimizers import make_optimizer
from prompt_jax.training.step import TrainState, frozen_base, make_train_step, vmap_members
from token_rows import make
from tools.planner.hlo import parse
from tools.planner.work import count_work

FIXTURES = Path(__file__).parents[1] / "fixtures"
BASES = {"t5": "t5_v11", "gpt2": "gpt2", "bart": "bart"}
CONFIGS = {
    "t5": t5.T5Config(32128, 64, 16, 128, 4, 2, 2),
    "gpt2": gpt2.GPT2Config(vocab_size=50257, d_model=64, d_ff=256, num_heads=4, layers=2, positions=32),
    "llama": llama.LlamaConfig(
        *("llama", 32000, 32, 64, 256, 4, 2, 16, 2, (Rope(10000.0),), (0, None), (None, 8), 16),
        **dict.fromkeys(("post_norms", "qk_norm", "qkv_bias", "o_bias", "mlp_bias", "fused"), True),
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_axis_of_a_parameter_has_a_rule(config):
    for parameter in family(config).parameters(config):
        assert len(parameter.axes) == len(parameter.shape)
        RULES.spec(*parameter.axes)
    with pytest.raises(AttributeError):
        RULES.spec("color")


def test_one_device_has_no_mesh():
    assert (
        make_mesh(MeshConfig()) is None and make_mesh(MeshConfig(data=-1)) is None and parameter_sharding(None) is None
    )
    assert named_sharding(None, "members") is None


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(data=0), "mesh.data must be positive, or -1 for all remaining devices, not 0"),
        (MeshConfig(ensemble=-1, model=-1), "mesh.ensemble and mesh.model are both -1"),
    ],
)
def test_impossible_meshes_are_refused(mesh, message):
    with pytest.raises(ConfigError, match=message):
        check(Experiment(mesh=mesh))


@pytest.fixture(
    scope="module", params=[name if name == "t5" else pytest.param(name, marks=pytest.mark.slow) for name in BASES]
)
def found(request) -> dict:
    """Return the results of `on_eight_devices` for a base."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parents[1]}",
    }
    done = subprocess.run([sys.executable, __file__, request.param], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_sizes_that_do_not_fit_are_refused(found):
    assert "mesh.data -1 x mesh.model 16 asks for 48 devices, and there are 8" in found["too many"]
    assert "mesh.model is 8, and encoder/layers/0/self/q has 4 heads" in found["heads"]


@dataclasses.dataclass(frozen=True)
class Chip:
    """Stands in for a chip of one of several slices."""

    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    process_index: int = 0
    device_kind: str = "TPU v5 lite"
    platform: str = "tpu"


def chips(slices: int, width: int, height: int) -> list[Chip]:
    return [Chip(own, (x, y, 0)) for y in range(height) for x in range(width) for own in range(slices)]


def test_members_are_distributed_over_slices():
    for config in (MeshConfig(ensemble=4, data=2), MeshConfig(ensemble=2, model=-1), MeshConfig(ensemble=-1)):
        mesh = make_mesh(config, chips(2, 2, 2))
        of_members = [{chip.slice_index for chip in row.flat} for row in mesh.devices]
        half = len(of_members) // 2
        assert of_members == [{0}] * half + [{1}] * half
        assert len(set(mesh.devices.flat)) == 8


@pytest.mark.parametrize("sizes", [(1, -1, 1), (1, 2, 8), (3, 4, 1), (2, 3, 2)])
def test_other_axes_stay_within_a_slice(sizes):
    with pytest.raises(ConfigError, match="chips of 2 slices, and only mesh.ensemble may extend over slices: make it"):
        make_mesh(MeshConfig(*sizes), sorted(chips(2, 4, 2), key=lambda chip: chip.slice_index))


def test_a_mesh_within_the_first_of_two_slices():
    mesh = make_mesh(MeshConfig(data=2, model=2), sorted(chips(2, 2, 2), key=lambda chip: chip.slice_index))
    assert {chip.slice_index for chip in mesh.devices.flat} == {0}


def test_nothing_in_a_step_crosses_slices(found):
    """Devices with even and odd numbers stand for two slices. Some groups that communicate cross the other axes."""
    across = found["step"]["groups across"]
    assert across["slices"] == 0 and across["data"] > 0 and across["model"] > 0


TWO_SLICES = """
import json, os
from tools.planner.__main__ import NO_TPU
os.environ |= NO_TPU
from jax.experimental import topologies
from prompt_jax import DataConfig, Experiment, ModelConfig, PromptTuning, TrainConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.mesh import MeshConfig
from tools.planner.programs import programs

chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2).devices
experiment = Experiment(
    model=ModelConfig(name="google/t5-v1_1-small", dtype="bfloat16"),
    data=DataConfig(task="any", input_length=64, target_length=8),
    prompt=PromptTuning(length=5),
    train=TrainConfig(batch_size=8, eval_batch_size=16),
    ensemble=EnsembleConfig(size=4),
    mesh=MeshConfig(4, 2, 2),
)
compiled = [program.lower().compile().as_text() for program in programs(experiment, list(chips))]
print(json.dumps([[text.count(word) for word in (" all-reduce(", "xla_megascale_transfer")] for text in compiled]))
"""


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu]'")
def test_nothing_in_a_step_crosses_slices_of_tpus():
    """The TPU compiler gives transfers between slices this name. Generation has one: whether all answers have ended."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", TWO_SLICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (reductions, transfers), (_, of_generation) = json.loads(done.stdout.splitlines()[-1])
    assert reductions > 0 and transfers == 0
    assert of_generation > 0


def test_each_part_of_a_batch_is_read_once(found):
    assert found["batch"] == {"equal": True, "read": [[0, 1, 0, 4], [0, 1, 4, 8], [1, 2, 0, 4], [1, 2, 4, 8]]}


def test_a_base_over_devices_is_the_base(found):
    """Each of four devices holds a quarter of the layers' matrices, and only a quarter is read at a time."""
    for dtype in weights.DTYPES:
        assert found[dtype] == {"equal": True, "largest part": 0.25}
        assert found[f"fully sharded {dtype}"] == {"equal": True, "largest part": 0.5}


def test_a_base_of_int4_over_devices_trains_as_on_one(found):
    """Groups of 64 inputs are larger than the parts of 32 on four devices, and as large as those on two."""
    for losses in found["int4 over devices"]:
        np.testing.assert_allclose(losses, found["int4 on one"], rtol=1e-5)


def test_the_step_exchanges_activations_alone(found):
    """Two all-reduces per layer in the forward pass (three with cross-attention), and scalars of the loss."""
    step = found["step"]
    assert set(step["kinds"]) == {"all-reduce", "all-gather"}
    assert step["kinds"]["all-gather"] == 2, "the most probable word, of each device's"
    assert step["largest gathered"] <= step["tokens"] * 4, "no activation, no weight"
    np.testing.assert_allclose(step["losses"], step["losses on one"], rtol=1e-5)


def test_a_fully_sharded_base_is_collected_and_only_prompts_are_reduced(found):
    """The prompt's gradient, [5, D], is the largest array that is reduced. A device stores a fraction of the base."""
    fsdp = found["fsdp"]
    np.testing.assert_allclose(fsdp["losses"], found["step"]["losses on one"], rtol=1e-5)
    assert fsdp["reduced"] <= 5 * 64 and fsdp["share"] < 0.5
    assert 1 < fsdp["collected"] <= 2, "a layer in each of the two passes, for prompt, source and target together"


def test_fused_kernels_on_devices_are_the_plain_forms(found):
    names = ("attention, 4", "feed-forward, 4", "attention, 1", "feed-forward, 1")
    assert found["kernels"] == dict.fromkeys(names, pytest.approx(0, abs=1e-5))


def test_targets_have_the_same_probability_on_devices(found):
    np.testing.assert_allclose(found["scores"], found["scores on one"], rtol=1e-5)


def on_eight_devices(name: str) -> dict:
    result: dict = {}
    for key, mesh in (("too many", MeshConfig(3, -1, 16)), ("heads", MeshConfig(model=8))):
        try:
            load_model(FIXTURES / "t5_v11" / "base", sharding=parameter_sharding(make_mesh(mesh)))
        except ConfigError as error:
            result[key] = str(error)
    mesh = make_mesh(MeshConfig(data=2, model=4))
    folder = FIXTURES / BASES[name] / "base"
    for dtype in weights.DTYPES:
        result[dtype] = loaded(folder, dtype, parameter_sharding(mesh))
        half = parameter_sharding(make_mesh(MeshConfig(4, 2)), fsdp=True)
        result[f"fully sharded {dtype}"] = loaded(folder, dtype, half)
    result["int4 over devices"] = [
        two_steps(folder, make_mesh(MeshConfig(1, 2, 4)), dtype="int4")[0],
        *(
            two_steps(folder, make_mesh(MeshConfig(1, data)), fsdp=True, dtype="int4")[0]
            for data in ((8,) if name == "t5" else (8, 2))  # slow tests run both
        ),
    ]
    result["int4 on one"] = two_steps(folder, None, dtype="int4")[0]
    result["fsdp"], result["kernels"] = fully_sharded(folder), in_kernels()
    result["step"], result["batch"] = stepped(folder), read_in_parts()
    for where, own in (("scores", mesh), ("scores on one", None)):
        model = load_model(folder, sharding=parameter_sharding(own))
        inputs, targets = ([random_text(model, 1, n, seed=n)[0] for n in sizes] for sizes in ((3, 9, 4), (6, 2, 5)))
        result[where] = score_targets(Rows(model, None, inputs, batch_size=3), targets).tolist()
    return result


def loaded(folder: Path, dtype: str, placement: weights.Shardings) -> dict:
    """Return whether a sharded base equals the base, and the largest share of a matrix that is read at once."""
    shares, real = [], weights._read_slice

    def spy(parameter, tensors, dtype, index):
        part = real(parameter, tensors, dtype, index)
        if parameter.layers is not None and len(parameter.shape) > 1 and "embed" in parameter.axes:
            size = max(leaf.size for leaf in jax.tree.leaves(part))
            shares.append(size / (parameter.layers * np.prod(parameter.shape)))
        return part

    weights._read_slice = spy
    try:
        divided_base = load_model(folder, dtype, sharding=placement).params
    finally:
        weights._read_slice = real
    whole = load_model(folder, dtype).params
    equal = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), divided_base, whole)
    return {"equal": all(jax.tree.leaves(equal)), "largest part": max(shares)}


MEMBERS, ROWS, SOURCE, TARGET = 4, 8, 7, 5


def two_steps(
    folder: Path, mesh: jax.sharding.Mesh | None, *, fsdp: bool = False, dtype: str = "float32"
) -> tuple[list, Any]:
    """Run two steps of four members with float32 activations; return the losses and, except for int4, the program."""
    prompt_config = PromptTuning(length=5, init="uniform")
    optimizer = frozen_base(make_optimizer(OptimizerConfig(), 10))
    model = load_model(folder, dtype, sharding=parameter_sharding(mesh, fsdp=fsdp))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, model.params)
    model = dataclasses.replace(model, params=params)
    starts = []
    for seed in range(MEMBERS):
        prompt = prompt_config.initialize(jax.random.key(seed), model)
        starts.append(TrainState.create(prompt, optimizer))
    own = named_sharding(mesh, "members")
    state = to_devices(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), own)
    keys = to_devices(jnp.stack([jax.random.key(seed) for seed in range(MEMBERS)]), own)
    rng = np.random.default_rng(0)

    def ids(length):
        return rng.integers(3, model.config.vocab_size, (MEMBERS, ROWS, length)).astype(np.int32)

    batch = {"inputs": ids(SOURCE), "decoder_inputs": ids(TARGET), "targets": ids(TARGET)}
    batch |= {
        "inputs_mask": np.ones((MEMBERS, ROWS, SOURCE), bool),
        "target_mask": np.ones((MEMBERS, ROWS, TARGET), bool),
    }
    config = dataclasses.replace(model.config, fsdp=fsdp)
    step = make_train_step(config, prompt_config, optimizer, accumulate=1 if fsdp else 2)
    arguments = model.params, to_devices(batch, named_sharding(mesh, "members", "batch")), keys
    jitted = jax.jit(vmap_members(step, group=1, mesh=mesh, fsdp=fsdp))
    # On CPUs, JAX does not pass int4 to programs compiled in advance.
    compiled = None if dtype == "int4" else jitted.lower(state, *arguments).compile()
    losses = []
    for _ in range(2):
        state, metrics = (compiled or jitted)(state, *arguments)
        losses.append(to_host(metrics["loss"]).tolist())
    return losses, compiled


def fully_sharded(folder: Path) -> dict:
    """Return what a step communicates if the base is sharded over four devices."""
    losses, compiled = two_steps(folder, make_mesh(MeshConfig(2, 4, fsdp=True)), fsdp=True)
    reduced = " ".join(re.findall(r"= (\(?\w+\[[^=]*) all-reduce\(", compiled.as_text()))
    sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in re.findall(r"\w\[([\d,]*)\]", reduced)]
    base = sum(leaf.nbytes for leaf in jax.tree.leaves(load_model(folder).params))
    share = compiled.memory_analysis().argument_size_in_bytes / base
    collectives = count_work(parse(compiled.as_text())).collectives
    collected = sum(each.bytes * each.count for each in collectives if each.kind == "all-gather")
    # A device processes two members, one after the other.
    return {"losses": losses, "reduced": int(max(sizes)), "share": share, "collected": collected / base / 2}


def in_kernels() -> dict:
    """Return the largest differences between fused kernels and their plain forms for 4 rows and for one row.

    One row, such as a prompt, cannot be divided over `data`. Values and gradients are compared, with dropout.
    """
    kernels.LEAST_QUERIES, kernels.platform = 1, lambda: "tpu"
    feed_forwards.LEAST_TOKENS, feed_forwards._LANES = 1, 8
    interpreted = types.SimpleNamespace(**vars(pl) | {"pallas_call": functools.partial(pl.pallas_call, interpret=True)})
    kernels.pl = feed_forwards.pl = interpreted

    def mixed(fused: bool, key: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, KeyValues(k, v), dropout_rate=0.2, key=key, fused=fused)

    def fed(fused: bool, key: jax.Array, x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        config = types.SimpleNamespace(fused_attention=fused, remat="full")
        return feed_forward(x, {"up": up, "down": down}, jax.nn.gelu, config=config, dropout_rate=0.2, key=key)

    found = {}
    for rows in (4, 1):
        shapes = [(rows, 12, 4, 8)] * 3, [(rows, 12, 8), (8, 16), (16, 8)]
        for name, form, sizes, mesh in zip(
            ("attention", "feed-forward"), (mixed, fed), shapes, (MeshConfig(2, 2, 2), MeshConfig(2, 4)), strict=True
        ):
            arrays = [jax.random.normal(jax.random.key(seed), (2, *size)) for seed, size in enumerate(sizes)]
            results = [differentiated(functools.partial(form, fused), mesh)(arrays) for fused in (True, False)]
            pairs = zip(*map(jax.tree.leaves, results), strict=True)
            found[f"{name}, {rows}"] = max(float(jnp.abs(a - b).max()) for a, b in pairs)
    return found


def differentiated(form: Any, mesh: MeshConfig) -> Any:
    """Return the function that computes the form's values and gradients of two members on the mesh."""
    members = jax.sharding.PartitionSpec("ensemble")

    def one(key: jax.Array, arrays: list[jax.Array]) -> Any:
        out, pull = jax.vjp(functools.partial(form, key), *arrays)
        return out, pull(jnp.cos(out))

    options: Any = {"in_specs": members, "out_specs": members, "axis_names": {"ensemble"}, "check_vma": False}
    of_members = jax.jit(jax.shard_map(jax.vmap(one), mesh=make_mesh(mesh), **options))
    return functools.partial(of_members, jax.random.split(jax.random.key(3), 2))


def stepped(folder: Path) -> dict:
    """Run two steps of four members on 2 x 2 x 2 devices and on one; return losses and collectives."""
    sharding._slices = lambda devices: [devices[::2], devices[1::2]]
    over_slices = make_mesh(MeshConfig(2, 2, 2))
    losses, compiled = two_steps(folder, over_slices)
    text = compiled.as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
    collectives = [line for line in text.splitlines() if re.search(rf" ({kinds})(-start)?\(", line)]
    groups = [group for line in collectives for group in groups_of(line)]
    places = np.arange(8).reshape(2, 2, 2)  # of the devices in the mesh
    odd = [place for place, device in enumerate(over_slices.devices.flat) if device.id % 2]
    halves = {"slices": odd, "data": places[:, 0], "model": places[:, :, 0]}
    return {
        "groups across": {name: across(half, groups) for name, half in halves.items()},
        "kinds": Counter(re.findall(rf" ({kinds})(?:-start)?\(", text)),
        "largest gathered": max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in gathered),
        "tokens": ROWS * TARGET,
        "losses": losses,
        "losses on one": two_steps(folder, None)[0],
    }


def groups_of(line: str) -> list[list[int]]:
    """Return the groups of devices, by their place in the mesh, that communicate in a collective operation."""
    if pairs := re.search(r"source_target_pairs={({[\d,{}]*})}", line):
        return json.loads(f"[{pairs[1].translate(BRACKETS)}]")
    if listed := re.search(r"replica_groups={({[\d,{}]*})}", line):
        return json.loads(f"[{listed[1].translate(BRACKETS)}]")
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    assert counted is not None, line
    shape, sizes, order = ([int(n) for n in part.split(",")] if part else None for part in counted.groups())
    return np.arange(np.prod(sizes)).reshape(sizes).transpose(order).reshape(shape).tolist()


BRACKETS = str.maketrans("{}", "[]")


def across(half, groups: list[list[int]]) -> int:
    """Return the number of groups with devices both inside and outside this half."""
    return sum(len(set(np.isin(group, half).tolist())) == 2 for group in groups)


def read_in_parts() -> dict:
    """Return whether a batch that is read in parts is the whole batch, and which parts are read."""
    lengths, parts = [3 + i % 9 for i in range(40)], []
    batches = MemberBatches([make(lengths, 8), make(lengths, 8, seed=1)], [[0, 1]])
    (batch,) = next(batches)
    of_batch = named_sharding(make_mesh(MeshConfig(2, 2, 2)), "members", "batch")

    def read(members: slice, rows: slice) -> dict[str, np.ndarray]:
        parts.append([members.start, members.stop, rows.start, rows.stop])
        return batch.read(members, rows)

    placed, expected = read_to_devices(read, batch.shape, of_batch), batch.read()
    equal = [np.array_equal(placed[name], expected[name]) for name in expected]
    shards = [array.sharding == of_batch for array in placed.values()]
    return {"equal": all(equal + shards) and len(placed) == 5, "read": sorted(parts)}


if __name__ == "__main__":
    print(json.dumps(on_eight_devices(sys.argv[1])))
