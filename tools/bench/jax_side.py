"""The sides `prompt_jax` and `alone`. __main__.py describes the cases."""

import dataclasses
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import prompt_jax
from prompt_jax.checkpoints.config_files import model_config
from prompt_jax.checkpoints.load import Model, load_model
from prompt_jax.config.data import DataConfig
from prompt_jax.config.decoding import Decoding
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.data.batches import TrainBatches
from prompt_jax.data.buckets import length_buckets
from prompt_jax.inference.decoding import generate_scored
from prompt_jax.methods import METHODS
from prompt_jax.models import family, gpt2, t5
from prompt_jax.models.prompt import Prompt
from prompt_jax.training import step as steps
from prompt_jax.training.optimizers import make_optimizer
from tools.bench.cases import (
    DECODED,
    GENERATIONS,
    MANY_MEMBERS,
    MEMBERS,
    SHAPES,
    SMOLLM2,
    Kind,
    Row,
    Shape,
    alternately,
    review_time,
    reviews,
    timed,
)

Batch = dict[str, Any]


class Training:
    """The training step of a frozen base, and its initial states."""

    def __init__(self, base: tuple[Any, Any], shape: Shape):
        config, params = base
        self.shape = shape
        self.method = METHODS[shape.method](length=shape.length, init="normal")
        self.optimizer = steps.frozen_base(make_optimizer(OptimizerConfig(), 1000))
        config = dataclasses.replace(config, dropout_rate=shape.dropout, remat=shape.remat)
        self.step = steps.make_train_step(config, self.method, self.optimizer, dropout=shape.dropout > 0)
        self.params = params
        self._model = Model("random", None, params, config, None, "")

    def state(self, seed: int) -> steps.TrainState:
        first = self.method.initialize(jax.random.key(seed), self._model)
        return steps.TrainState.create(first, self.optimizer)

    def repeated(self) -> Callable[[], None]:
        """Return a function that runs a step, always with the same batch."""
        batch, key = random_batch(self.shape), jax.random.key(1)
        compiled, state = jax.jit(self.step, donate_argnums=0), self.state(0)

        def one() -> None:
            nonlocal state
            state, metrics = compiled(state, self.params, jax.device_put(batch), key)
            metrics["loss"].block_until_ready()

        return one


def step(case: str) -> Row:
    """Time a training step of a single prompt, always with the same batch, and count its operations."""
    _, params = base = random_base(SHAPES[case].model)
    training = Training(base, SHAPES[case])
    measured = timed(training.repeated()) | device_peak()  # before counting operations, which takes memory
    # One stack per layer, without a loop: the compiler would count a loop's body once.
    unrolled = jax.tree.map(lambda x: x, params)
    for part in (unrolled,) if "layers" in unrolled else (unrolled["encoder"], unrolled["decoder"]):
        (stack,) = part["layers"]
        layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), stack)
        part["layers"] = (layer,) * len(jax.tree.leaves(stack)[0])
    arguments = training.state(0), unrolled, random_batch(SHAPES[case]), jax.random.key(1)
    counted: Any = jax.jit(training.step).lower(*arguments).compile()
    return measured | {"flops": counted.cost_analysis()["flops"], "matmul": matmul_rate()}


def review_steps() -> Row:
    """Time a training step of a single prompt for the demo model, on bucketed batches of movie reviews."""
    model = load_model("demo")
    batches, lengths, tokenize_seconds = review_batches(model)
    training = Training((model.config, model.params), SHAPES["reviews"])
    compiled, state, key = jax.jit(training.step, donate_argnums=0), training.state(0), jax.random.key(1)

    def one(batch: Batch | None = None) -> None:
        nonlocal state
        state, metrics = compiled(state, training.params, jax.device_put(batch or next(batches)), key)
        metrics["loss"].block_until_ready()

    seen: set[tuple[int, ...]] = set()
    while len(seen) < lengths:  # compile each length before timing
        batch = next(batches)
        if batch["inputs"].shape not in seen:
            seen.add(batch["inputs"].shape)
            one(batch)
    return review_time(one, tokenize_seconds) | device_peak() | {"matmul": matmul_rate()}


def generation(case: str) -> Row:
    """Time the generation of a fixed number of tokens per input."""
    shape = GENERATIONS[case]
    one = generator(random_base(shape.model), shape, beams=5 if case.endswith("beam5") else 1)
    return timed(one, steps=2) | device_peak()


def generator(base: tuple[Any, Any], shape: Shape, beams: int) -> Callable[[], None]:
    """Return a function that generates `shape.target` tokens per input."""
    config, params = base
    batch, prompt = inputs_and_prompt(base, shape)
    decoding = Decoding(beams=beams, min_new_tokens=shape.target)

    def one() -> None:
        tokens = prompt_jax.generate(params, config, batch, prompt, max_new_tokens=shape.target, decoding=decoding)
        tokens.block_until_ready()

    return one


def decoding_memory() -> dict[str, Row]:
    """Return the compiler's memory for generation with GPT-2 small and a prefix of 200, by number of inputs."""
    rows = {}
    for size in DECODED:
        shape = dataclasses.replace(GENERATIONS["gpt2-prefix-beam5"], batch=size, length=200)
        config, params = base = random_base("gpt2")
        batch, prompt = inputs_and_prompt(base, shape)
        options = {"max_new_tokens": shape.target, "decoding": Decoding(beams=5)}
        run = jax.jit(generate_scored, static_argnames=("config", *options))
        sizes = run.lower(params, config, batch, prompt, **options).compile().memory_analysis()
        rows[str(size)] = {
            "prefix_mib": sum(leaf.nbytes for leaf in jax.tree.leaves(prompt)) / 2**20,
            "temporary_mib": sizes.temp_size_in_bytes / 2**20,
        }
    return rows


def inputs_and_prompt(base: tuple[Any, Any], shape: Shape) -> tuple[Batch, Prompt]:
    """Return a batch to generate from, and a random prompt on the device."""
    training = Training(base, shape)
    prompt = training.method.apply(training.state(0).trainable["prompt"])
    batch = {name: value for name, value in random_batch(shape).items() if name.startswith("inputs")}
    return batch, prompt


def alone() -> Row:
    """Time one step per member in turn, with the compiled step of a single prompt."""
    shape = SHAPES["ensemble"]
    training = Training(random_base(), shape)
    compiled, keys = jax.jit(training.step, donate_argnums=0), jax.random.split(jax.random.key(1), MEMBERS)
    states = [training.state(seed) for seed in range(MEMBERS)]
    batches = [random_batch(shape, seed) for seed in range(MEMBERS)]
    # On an accelerator the next step is dispatched before this one ends. On a CPU that would only cost memory.
    block = jax.default_backend() == "cpu"

    def all_members() -> None:
        for i, (batch, key) in enumerate(zip(batches, keys, strict=True)):
            states[i], metrics = compiled(states[i], training.params, jax.device_put(batch), key)
            if block:
                metrics["loss"].block_until_ready()
        jax.block_until_ready(states)

    return timed(all_members) | device_peak()


def together() -> Row:
    """Time one step of all members in one program: one after another on a CPU, all at once on an accelerator."""
    group = 1 if jax.default_backend() == "cpu" else None
    one, _ = ensemble_step(random_base(), SHAPES["ensemble"], MEMBERS, group)
    return timed(lambda: jax.block_until_ready(one())) | device_peak()


def member_rates() -> dict[str, Row]:
    """Time a step of 1 to 64 members at once."""
    base = random_base()
    in_a_row = {members: max(2, 16 // members) for members in MANY_MEMBERS}

    def several(members: int) -> Callable[[], None]:
        one, _ = ensemble_step(base, SHAPES["members"], members)

        def run() -> None:  # as in training, no step waits for the previous one
            jax.block_until_ready([one() for _ in range(in_a_row[members])])

        return run

    measured = alternately({str(members): several(members) for members in MANY_MEMBERS}, rounds=4)
    seconds = {members: measured[str(members)]["seconds"] / in_a_row[members] for members in MANY_MEMBERS}
    return {str(members): {"seconds": each, "rate": members / each} for members, each in seconds.items()}


def memory(members: int, group: int | None) -> Row:
    """Measure the process's peak memory and the compiler's memory of a step, with members at once or in groups."""
    base = random_base()
    one, compiled = ensemble_step(base, SHAPES["memory"], members, group)
    measured = timed(lambda: jax.block_until_ready(one()), steps=2) | device_peak()
    sizes = compiled.memory_analysis()
    return measured | {
        "base_mib": sum(leaf.nbytes for leaf in jax.tree.leaves(base[1])) / 2**20,
        "arguments_mib": sizes.argument_size_in_bytes / 2**20,
        "temporary_mib": sizes.temp_size_in_bytes / 2**20,
    }


def ensemble_step(
    base: tuple[Any, Any], shape: Shape, members: int, group: int | None = None
) -> tuple[Callable[[], Any], Any]:
    """Return a function that dispatches a step of all members and returns the losses, and the compiled step."""
    training = Training(base, shape)
    state = stacked([training.state(seed) for seed in range(members)])
    batch = jax.tree.map(lambda *rows: np.stack(rows), *(random_batch(shape, seed) for seed in range(members)))
    keys = jax.random.split(jax.random.key(1), members)
    whole = jax.jit(steps.vmap_members(training.step, group=group), donate_argnums=0)
    compiled = whole.lower(state, training.params, batch, keys).compile()

    def one() -> Any:
        nonlocal state
        state, metrics = compiled(state, training.params, jax.device_put(batch), keys)
        return metrics["loss"]

    return one, compiled


def stacked(trees: Sequence[Any]) -> Any:
    """Stack trees of arrays along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def review_batches(model: Model) -> tuple[Iterator[Batch], int, float]:
    """Return batches of movie reviews, the number of their lengths, and the seconds it takes to tokenize a batch."""
    texts, labels = reviews()
    tokenizer: Any = model.tokenizer
    start = time.perf_counter()
    inputs = [np.array(tokenizer.input_ids(text), np.int32) for text in texts]
    targets = [np.array(tokenizer.target_ids(text), np.int32) for text in labels]
    seconds = time.perf_counter() - start
    lengths, size = [len(row) for row in inputs], SHAPES["reviews"].batch
    buckets = length_buckets(lengths, DataConfig.buckets, max(lengths))
    examples = types.SimpleNamespace(inputs=inputs, targets=targets)
    batches = TrainBatches(examples, size, 0, buckets, model.config.pad_id, model.config.start_id)
    return batches, len(buckets), seconds / len(texts) * size


def random_base(model: Kind = "t5") -> tuple[Any, Any]:
    """Return config and random parameters of a model's shape."""
    config: Any = {
        "t5": t5_small,
        "gpt2": lambda: gpt2.GPT2Config(50257, 1024, 768, 3072, 12, 12),
        "llama": lambda: model_config({"model_type": "llama", **SMOLLM2}, {}, source="SmolLM2"),
    }[model]()
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    for row in family(config).parameters(config):
        *parents, leaf = row.path.split("/")
        node = params
        for name in parents:
            node = node.setdefault(name, {})
        shape = row.shape if row.layers is None else (row.layers, *row.shape)
        node[leaf] = jnp.asarray(0.05 * rng.standard_normal(shape, np.float32))
    for part in (params,) if "layers" in params else (params["encoder"], params["decoder"]):
        part["layers"] = (part["layers"]["0"],)
    return config, params


def t5_small() -> t5.T5Config:
    return t5.T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=2048,
        num_heads=8,
        encoder_layers=6,
        decoder_layers=6,
        activation="relu",
        gated=False,
        tied_output=True,
        scale_output=True,
    )


def random_batch(shape: Shape, seed: int = 0) -> Batch:
    """Return a random batch without padding."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(2, 32000, (shape.batch, shape.source)).astype(np.int32)
    batch = {"inputs": inputs, "inputs_mask": np.ones(inputs.shape, bool)}
    targets = rng.integers(2, 32000, (shape.batch, shape.target or shape.source)).astype(np.int32)
    if shape.target:
        batch["decoder_inputs"] = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return batch | {"targets": targets, "target_mask": np.ones(targets.shape, bool)}


def matmul_rate() -> float:
    """Return XLA's rate for products of 2048 x 2048 float32 matrices, in operations per second."""
    a = jnp.ones((2048, 2048))
    multiply = jax.jit(lambda a: a @ a)
    return 2 * 2048**3 / timed(lambda: multiply(a).block_until_ready())["seconds"]


def device_peak() -> Row:
    """Return the accelerator's peak memory so far; empty on a CPU, which does not report it."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"device_mib": stats["peak_bytes_in_use"] / 2**20} if "peak_bytes_in_use" in stats else {}
