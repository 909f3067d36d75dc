"""The programs of an experiment, with shapes in place of arrays, ready to compile for devices that do not exist."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from prompt_jax import experiment as experiments
from prompt_jax.checkpoints.config_files import model_config, read_config
from prompt_jax.checkpoints.load import Model
from prompt_jax.checkpoints.weights import FORMATS, abstract, open_checkpoint
from prompt_jax.config.model import Attention, Remat
from prompt_jax.distributed.chips import chip_of, known_chip
from prompt_jax.distributed.sharding import make_mesh, mesh_shape, named_sharding, parameter_sharding
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, check
from prompt_jax.inference.decoding import generate_scored
from prompt_jax.models import Config, check_context, family
from prompt_jax.models.delta import Delta, merged_params
from prompt_jax.models.fused_attention import compiling_for
from prompt_jax.models.prompt import Prompt
from prompt_jax.task_format import TaskFormat
from prompt_jax.training.choices import with_remat, workload
from prompt_jax.training.optimizers import make_optimizer
from prompt_jax.training.setup import check_division, train_step
from prompt_jax.training.step import TrainState, frozen_base
from tools.bench.cases import SMOLLM2
from tools.planner.flops import matmul_flops
from tools.planner.kernels import Kernels, kernels_of

# Published shapes, from the config.json files on the Hub.
_T5 = {"model_type": "t5", "vocab_size": 32128, "d_kv": 64, "feed_forward_proj": "gated-gelu"}
_T5_SIZES = {  # d_model, d_ff, layers, heads of T5 1.1; the LM-adapted and Flan models have the same
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
_GPT2_SIZES = {"": (768, 12, 12), "-medium": (1024, 24, 16), "-large": (1280, 36, 20), "-xl": (1600, 48, 25)}
_LLAMA3 = {"model_type": "llama", "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
_LLAMA32_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA32 = {"rope_scaling": _LLAMA32_ROPE, "max_position_embeddings": 131072, "tie_word_embeddings": True}
_LLAMA_SIZES: dict[str, tuple[int, int, int, int, int, dict[str, Any]]] = {  # d_model, d_ff, layers, heads, kv heads
    "meta-llama/Meta-Llama-3-8B": (4096, 14336, 32, 32, 8, {"max_position_embeddings": 8192}),
    "meta-llama/Meta-Llama-3-70B": (8192, 28672, 80, 64, 8, {"max_position_embeddings": 8192}),
    "meta-llama/Llama-3.2-1B": (2048, 8192, 16, 32, 8, _LLAMA32),
    "meta-llama/Llama-3.2-3B": (3072, 8192, 28, 24, 8, _LLAMA32),
}
_SMOLLM2 = SMOLLM2 | {
    "model_type": "llama",
    "rope_theta": 100000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "rope_theta": 1e6, "eos_token_id": 151645}
_QWEN3_SIZES = {  # d_model, d_ff, layers, heads; the first three share input and output embeddings
    "0.6B": (1024, 3072, 28, 16),
    "1.7B": (2048, 6144, 28, 16),
    "4B": (2560, 9728, 36, 32),
    "8B": (4096, 12288, 36, 32),
    "14B": (5120, 17408, 40, 40),
    "32B": (5120, 25600, 64, 64),
}
_GEMMA3 = {"model_type": "gemma3_text", "rms_norm_eps": 1e-6}
_GEMMA3_SIZES = {  # d_model, d_ff, layers, heads, kv heads, head width, query scalar, window, vocabulary
    "1b": (1152, 6912, 26, 4, 1, 256, 256, 512, 262144),
    "4b": (2560, 10240, 34, 8, 4, 256, 256, 1024, 262208),
    "12b": (3840, 15360, 48, 16, 8, 256, 256, 1024, 262208),
    "27b": (5376, 21504, 62, 32, 16, 128, 168, 1024, 262208),
}


def _published() -> dict[str, dict[str, Any]]:
    shapes: dict[str, dict[str, Any]] = {}
    for size, (width, inner, depth, heads) in _T5_SIZES.items():
        raw = _T5 | {"d_model": width, "d_ff": inner, "num_layers": depth, "num_heads": heads}
        for name in (f"t5-v1_1-{size}", f"t5-{size}-lm-adapt", f"flan-t5-{size}"):
            shapes[f"google/{name}"] = raw | {"tie_word_embeddings": False}
    shapes["demo"] = shapes["google/flan-t5-small"]  # its ancestor
    shapes["smollm2"] = shapes["HuggingFaceTB/SmolLM2-135M-Instruct"] = _SMOLLM2
    for size, (width, depth, heads) in _GPT2_SIZES.items():
        raw = {"model_type": "gpt2", "n_embd": width, "n_layer": depth, "n_head": heads}
        shapes[f"openai-community/gpt2{size}"] = raw
    for name, (width, inner, depth, heads, kv_heads, more) in _LLAMA_SIZES.items():
        sizes = _decoder_sizes(width, inner, depth, heads, kv_heads)
        shapes[name] = _LLAMA3 | sizes | more
    for size, (width, inner, depth, heads) in _QWEN3_SIZES.items():
        tied = {"tie_word_embeddings": size in ("0.6B", "1.7B", "4B")}
        shapes[f"Qwen/Qwen3-{size}"] = _QWEN3 | _decoder_sizes(width, inner, depth, heads, 8) | tied
    for size, (width, inner, depth, heads, kv_heads, head, scalar, window, words) in _GEMMA3_SIZES.items():
        shapes[f"google/gemma-3-{size}-pt"] = (
            _GEMMA3
            | _decoder_sizes(width, inner, depth, heads, kv_heads)
            | {"head_dim": head, "query_pre_attn_scalar": scalar, "sliding_window": window, "vocab_size": words}
            | ({} if size == "1b" else {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
        )
    shapes["facebook/bart-large"] = {"model_type": "bart", "forced_bos_token_id": 0}
    return shapes


def _decoder_sizes(width: int, inner: int, depth: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


PUBLISHED = _published()


class Program(NamedTuple):
    """A program that a run compiles."""

    name: str
    lower: Callable[[], Any]  # returns a `jax.stages.Lowered`
    devices: Sequence[Any]  # in the order of the device numbers in its text
    model_flops: float  # for all devices, without recomputation
    unknown_trips: int  # most trips of loops that stop when all rows have ended
    kernels: Kernels


def programs(experiment: Experiment, devices: Sequence[Any]) -> Iterator[Program]:
    """Yield the training step of each prompt length, and the generation of answers. See `training_steps`."""
    yield from training_steps(experiment, devices)
    yield generation(experiment, devices)


def training_steps(experiment: Experiment, devices: Sequence[Any]) -> Iterator[Program]:
    """Yield the training step of each prompt length, for the longest input.

    Args:
      experiment: its base may be missing on this machine if it is one of PUBLISHED.
      devices: devices of a topology.

    Raises:
      ConfigError: an unknown base, or an error that a run of this experiment on such devices would raise.
    """
    alone, config, mesh = _checked(experiment, devices)
    experiment = with_choices(experiment, devices)
    for numbers in experiments.group_members(alone):
        yield _train(experiment, alone[numbers[0]], len(numbers), config, mesh, devices)


def generation(experiment: Experiment, devices: Sequence[Any]) -> Program:
    """Return the generation of answers to the longest inputs. Arguments and errors as for `training_steps`."""
    alone, config, mesh = _checked(experiment, devices)
    experiment = with_choices(experiment, devices)
    # As in `load_model`, the kernel is not divided over devices in generation.
    config = dataclasses.replace(config, fused_attention=mesh is None and experiment.model.attention == "fused")
    return _generate(experiment, alone, config, mesh, devices)


def with_choices(experiment: Experiment, devices: Sequence[Any]) -> Experiment:
    """Return the experiment with the attention for these devices, and the remat for their memory and longest inputs."""
    if experiment.model.attention == "auto" and devices[0].platform == "tpu":
        experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, attention="fused"))
    if experiment.model.remat == "auto":
        # Devices of a topology do not report their memory.
        chip = chip_of(list(devices)) if devices[0].platform == "cpu" else known_chip(devices[0])
        config, mesh = base_config(experiment.model.name), make_mesh(experiment.mesh, list(devices))
        with compiling_for(devices[0]):
            experiment = with_remat(experiment, config, workload(experiment, config), mesh, chip)
    return experiment


def _checked(experiment: Experiment, devices: Sequence[Any]) -> tuple[tuple[Experiment, ...], Config, Mesh | None]:
    """Return the members, the base's config and the mesh of an experiment that can run."""
    check(experiment)
    if experiment.prompt.per_task:
        raise ConfigError(
            "multitask prompts depend on the number of tasks, and the planner loads no data; choose another "
            "prompt.method"
        )
    alone = experiments.members(experiment)
    mesh = make_mesh(experiment.mesh, list(devices))
    check_division(experiments.group_members(alone), alone, mesh_shape(mesh))
    hosts, used = len({device.process_index for device in devices}), 1 if mesh is None else mesh.size
    if hosts > 1 and used < len(devices):
        raise ConfigError(
            f"mesh.ensemble, mesh.data and mesh.model make {used} devices, but the {hosts} hosts have {len(devices)}, "
            "and a mesh over several hosts must use all; -1 sets one of the sizes to what the others leave"
        )
    return alone, base_config(experiment.model.name), mesh


def base_config(name: str) -> Config:
    """Return the config of a model folder, which needs only config.json, or of a published model.

    Raises:
      ConfigError: the name is neither.
      CheckpointError: an unsupported config.json.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        raw = read_config(folder)
        # A T5's config.json may omit whether output weights are tied; the names of the weights tell.
        has_weights = any((folder / file).is_file() for form in FORMATS for file in (form.file, form.index_file))
        with open_checkpoint(folder) if has_weights else contextlib.nullcontext({}) as tensors:
            return model_config(raw, tensors, source=str(folder / "config.json"))
    if name not in PUBLISHED:
        raise ConfigError(
            f"model.name {name!r} is neither a folder with a config.json nor a published model with a known shape: "
            f"{', '.join(PUBLISHED)}"
        )
    return model_config(PUBLISHED[name], {}, source=name)


def lengths(experiment: Experiment) -> tuple[int, int]:
    """Return the longest input and target in tokens, by default TaskFormat's defaults."""
    default = TaskFormat("{text}")
    data = experiment.data
    return data.input_length or default.input_length, data.target_length or default.target_length


# --------------------------------------------------------------------------------------------------------------
# Training


def _train(
    experiment: Experiment, member: Experiment, count: int, config: Config, mesh: Mesh | None, devices: Sequence[Any]
) -> Program:
    """Return the training step of `count` members with the prompt of `member`."""
    options, (source, target) = experiment.train, lengths(experiment)
    base = _base(experiment, config, mesh, devices)
    state = start_of(member, config, base)
    made = jax.eval_shape(member.prompt.apply, state.trainable["prompt"])
    check_context(config, made if isinstance(made, Prompt) else None, source, target)
    of_members, of_rows = (_placed(mesh, devices, *axes) for axes in (("members",), ("members", "batch")))
    ids, mask = jnp.int32, jnp.bool_
    columns = {
        "inputs": (source, ids),
        "inputs_mask": (source, mask),
        "decoder_inputs": (target, ids),
        "targets": (target, ids),
        "target_mask": (target, mask),
    }
    rows = (count, options.batch_size)
    arguments = (
        _shapes(state, of_members, count),
        base,
        {name: jax.ShapeDtypeStruct((*rows, n), dtype, sharding=of_rows) for name, (n, dtype) in columns.items()},
        _shapes(jax.eval_shape(lambda: jax.random.key(0)), of_members, count),
    )

    def traced(remat: Remat, attention: Attention) -> Any:
        model = dataclasses.replace(experiment.model, remat=remat, attention=attention)
        with compiling_for(devices[0]):
            step = train_step(dataclasses.replace(experiment, model=model), config, options.steps, mesh)
            return step.trace(*arguments)

    step = traced(experiment.model.remat, experiment.model.attention)
    name = f"training step, {count} x {member.prompt.stored_length}" if count > 1 else "training step"
    flops = matmul_flops(traced("none", "plain").jaxpr)  # a kernel's gradient computes scores again
    return Program(name, step.lower, _order(mesh, devices), flops, 1, kernels_of(step.jaxpr))


def start_of(member: Experiment, config: Config, base: Any, tasks: int | None = None) -> TrainState:
    """Return the shapes of a member's initial state; `tasks` is the number of tasks of multitask prompts."""
    # Values do not matter, and this initialization needs neither tokenizer nor file.
    prompt: Any = member.prompt
    if hasattr(prompt, "init"):
        prompt = dataclasses.replace(prompt, init="uniform")

    def start(key: jax.Array, base: Any) -> TrainState:
        model = Model(member.model.name, None, base, config, None, "")
        trainable = prompt.initialize(key, model, tasks=tasks or 1)
        return TrainState.create(trainable, frozen_base(make_optimizer(member.optimizer, member.train.steps)))

    return jax.eval_shape(start, jax.eval_shape(lambda: jax.random.key(0)), base)


# --------------------------------------------------------------------------------------------------------------
# Generation


def _generate(
    experiment: Experiment, alone: Sequence[Experiment], config: Config, mesh: Mesh | None, devices: Sequence[Any]
) -> Program:
    """Return the generation of answers to a batch that mixes all members, as in `evaluation.evaluate_members`."""
    source, target = lengths(experiment)
    base = _base(experiment, config, mesh, devices)
    prompt = _prompt(alone, config, base)
    check_context(config, prompt if isinstance(prompt, Prompt) else None, source, target)
    sizes = mesh_shape(mesh)
    groups = sizes["ensemble"] * sizes["data"]
    rows = -(-experiment.train.eval_batch_size // groups) * groups
    of_rows = _placed(mesh, devices, "rows")

    def column(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=of_rows)

    batch = {"inputs": column(source), "inputs_mask": column(source, dtype=jnp.bool_)}
    if isinstance(prompt, Prompt) and prompt.stacked is not None:
        batch["prompt_ids"] = column()
    if family(config).causal:
        batch["start_ids"] = column()
    decoding = dataclasses.replace(experiment.decoding, seed=0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = _shapes(key, _placed(mesh, devices)) if decoding.temperature else None
    static = {"max_new_tokens": target, "decoding": decoding, "check": False}
    generate: Any = generate_scored if isinstance(prompt, Prompt) else _generate_merged
    columns = {"row_numbers": column(), "lengths": column()}
    prompts = _shapes(prompt, _placed(mesh, devices))
    with compiling_for(devices[0]):
        # JAX caches what it traced for each function, whatever the device. A partial function is a new one.
        jitted = jax.jit(functools.partial(generate), static_argnames=("config", *static))
        traced = jitted.trace(base, config, batch, prompts, key=key, **columns, **static)
    trips = max(1, target - 1)  # prefill produces the first token
    flops = matmul_flops(traced.jaxpr, unknown_trips=trips)
    return Program("generation", traced.lower, _order(mesh, devices), flops, trips, kernels_of(traced.jaxpr))


def _generate_merged(params: Any, config: Config, batch: Any, delta: Delta, **options: Any) -> Any:
    return generate_scored(merged_params(params, delta), config, batch, **options)


def _prompt(alone: Sequence[Experiment], config: Config, base: Any) -> Prompt | Delta:
    """Return the stacked Prompt of all members; a single member's is not stacked."""
    lengths = [getattr(member.prompt, "length", 0) for member in alone]
    longest = alone[int(np.argmax(lengths))]
    start = start_of(longest, config, base)
    prompt = jax.eval_shape(longest.prompt.apply, start.trainable["prompt"])
    if len(alone) == 1 or isinstance(prompt, Delta):  # each Delta is evaluated on its own
        return prompt
    prompt = _shapes(prompt, None, len(alone))
    if min(lengths) == max(lengths):
        return prompt
    mask = jax.ShapeDtypeStruct((len(alone), max(lengths)), jnp.bool_)
    return Prompt(**{name: part.replace(mask=mask) for name, part in prompt.parts.items()})


# --------------------------------------------------------------------------------------------------------------
# Parts


def _base(experiment: Experiment, config: Config, mesh: Mesh | None, devices: Sequence[Any]) -> Any:
    placement = parameter_sharding(mesh, fsdp=experiment.mesh.fsdp) or SingleDeviceSharding(devices[0])
    return abstract(family(config).parameters(config), experiment.model.dtype, placement)


def _placed(mesh: Mesh | None, devices: Sequence[Any], *axes: str) -> jax.sharding.Sharding:
    return named_sharding(mesh, *axes) or SingleDeviceSharding(devices[0])


def _order(mesh: Mesh | None, devices: Sequence[Any]) -> list[Any]:
    return [devices[0]] if mesh is None else list(mesh.devices.flat)


def _shapes(tree: Any, sharding: jax.sharding.Sharding | None, *leading: int) -> Any:
    """Return the shapes of a tree's arrays with leading axes and a sharding."""
    make = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    return jax.tree.map(lambda leaf: make((*leading, *leaf.shape), leaf.dtype), tree)
