"""An analytic estimate of what a run needs of each device, and the mesh that it makes fastest.

The estimate adds up matrix products, weights, activations and collectives, at the rates of a chip. It takes
milliseconds. `tools.planner` counts the same in compiled programs, and tests compare the two.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.model import Dtype, Remat, RematOption
from prompt_jax.distributed.chips import GIB, HOP, Chip
from prompt_jax.distributed.sharding import RULES
from prompt_jax.errors import ConfigError
from prompt_jax.models import Config, family, fused_attention, fused_feed_forward
from prompt_jax.models.bart import BartConfig
from prompt_jax.models.llama import LlamaConfig
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.prompt import Prompt
from prompt_jax.models.t5 import T5Config

_ACTIVATION = {"float32": 4, "bfloat16": 2, "int8": 2, "fp8": 2, "int4": 2}  # bytes
# Bytes of a weight in a layer. int4 has a scale of 2 bytes for 64 weights.
_WEIGHT = {"float32": 4, "bfloat16": 2, "int8": 1, "fp8": 1, "int4": 1 / 2 + 2 / 64}
# These are fitted to compiled programs: bytes of memory traffic of an attention score in each pass over a layer, if
# scores are arrays in memory; how often a sublayer reads or writes its input and output beside its products; and how
# often activations that are kept for the backward pass are.
_SCORE_TRAFFIC = 8
_RESIDUAL_TRAFFIC = 8
_KEPT_TRAFFIC = 3
_SCORE_MEMORY = 10  # bytes of a score, its softmax and its gradient
_LOGIT_MEMORY = 12  # bytes of a logit, its softmax and its gradient
_NORM_MEMORY = 3 * 4  # bytes of an element of a query or key, of its normalized value and of its gradient
_FSDP_MEMORY = 1.1  # factor of the temporaries of decoder-only models: XLA copies weights into other layouts
_RINGS = {2: 16, 3: 4}  # axes of a torus -> the length from which an axis wraps around
_TILE = 8  # rows of a TPU's tile
_STATES = 4 * 4  # bytes of a trainable parameter, its gradient and two moments
# The share of the time to collect fully sharded weights in which XLA does not compute at the same time.
_EXPOSED = 0.33
USABLE = 0.9  # share of the memory; the rest is for code, and for what the estimate misses


@dataclasses.dataclass(frozen=True)
class Workload:
    """The work of a run's steps, for rows of the greatest length.

    Attributes:
      groups: numbers of members whose trainable parameters have equal shapes.
      at_once: number of members that a device processes at once; None means all of a group.
      rows: rows of a member's batch that are processed at once.
      parts: number of such parts of a batch.
      source: tokens of an input.
      target: tokens of a target.
      tokens: virtual tokens that an encoder reads.
      slots: keys and values of a prefix, or of a causal model's virtual tokens.
      trained: number of a member's trainable parameters.
      dtype: of the base.
      remat: which activations are recomputed; only `choose_mesh` and `choose_remat` take "auto".
      fused: whether attention is fused, so that scores are not in memory.
    """

    groups: tuple[int, ...]
    at_once: int | None
    rows: int
    parts: int
    source: int
    target: int
    tokens: int
    slots: int
    trained: int
    dtype: Dtype
    remat: RematOption
    fused: bool = False


def virtual_slots(config: Config, prompt: Any) -> tuple[int, int]:
    """Return how many virtual tokens an encoder reads, and the slots of the longest prefix. `prompt` may be a Delta."""
    slots = {name: part.slots for name, part in prompt.parts.items()} if isinstance(prompt, Prompt) else {}
    tokens = 0 if family(config).causal else slots.pop("encoder_tokens", 0)
    return tokens, max(slots.values(), default=0)


def takes_kernel(config: Config, dtype: Dtype, dropout_rate: float = 0.0) -> bool:
    """Return whether this platform's kernel takes a model's attention, with dropout on the attention weights.

    `fused_attention.fits` says which lengths it takes.
    """
    if fused_attention.platform() != "gpu":
        return True
    widths = [width for *_, width in family(config).sites(config).values()]
    softcap = getattr(config, "attention_softcap", None)
    return dtype != "float32" and dropout_rate == 0.0 and softcap is None and max(widths) <= 128


class Cost(NamedTuple):
    """The memory of each device that a step of all members needs, in bytes, and the seconds of each resource alone."""

    memory: float
    compute: float
    transfer: float
    interconnect: float
    overlapped: float = 0.0  # of the interconnect, at the same time as the others

    @property
    def seconds(self) -> float:
        return max(self.compute, self.transfer, self.overlapped) + self.interconnect


class _Matrix(NamedTuple):
    """A matrix of a stack of layers. `mesh.model` shards one of its two widths."""

    width: int
    sharded_width: int
    layers: int
    tokens: int  # of a row that it multiplies
    reduces_output: bool  # the output is summed over `mesh.model`; otherwise the gradient of the input is
    is_last: bool  # of the layer: remat recomputes its output only if a norm follows
    on_chip: bool  # a kernel keeps its activations of the sharded width on the chip, if `mesh.model` is 1


class _Scores(NamedTuple):
    """The attention scores of a row at one site."""

    number: int  # in a layer, over all heads
    layers: int
    width: int  # of the vectors that are multiplied
    in_memory: bool


def training_cost(config: Config, work: Workload, mesh: MeshConfig, chip: Chip) -> Cost:
    """Estimate one training step of all members.

    Args:
      config: the base's configuration.
      work: what a step computes.
      mesh: sizes of the axes, all positive.
      chip: the devices.
    """
    largest = math.ceil(max(work.groups) / mesh.ensemble)
    at_once = min(work.at_once or largest, largest)
    members = sum(work.groups) / mesh.ensemble  # of a device
    rows = members * work.parts * work.rows / mesh.data  # of a device in the whole step
    weights, width = weight_bytes(config, work.dtype, mesh), _ACTIVATION[work.dtype]
    matrices, scores = _matrices(config, work), _scores(config, work)
    full, again = work.remat == "full", work.remat != "none"

    # The backward pass costs as much as the forward pass, because weights have no gradients. Scores are products of two
    # activations, which both have gradients.
    flops: float = 2 * 2 * config.d_model * config.vocab_size * work.target
    # A kernel computes scores once more in the backward pass.
    flops += sum(4 * s.number * s.width * s.layers * (3 + again + (0 if s.in_memory else 0.5)) for s in scores)
    moved = sum(s.number * s.layers for s in scores if s.in_memory) * _SCORE_TRAFFIC * (2 + again) / mesh.model
    reduced, reductions = 0.0, 0
    # If a norm follows the last sublayer, its gradient needs the sublayer's output, which remat recomputes.
    normed = isinstance(config, BartConfig) or (isinstance(config, LlamaConfig) and config.post_norms)
    for m in matrices:
        forward, tokens = 1 + (full and (normed or not m.is_last)), m.tokens * m.layers
        # Remat then runs the fused kernel again, and its backward pass computes the hidden activations once more.
        forward += normed and m.on_chip and not m.is_last
        flops += (forward + 1) * 2 * m.width * m.sharded_width * tokens
        inner = 0 if m.on_chip and mesh.model == 1 else m.sharded_width / mesh.model
        moved += (forward + 1) * (m.width + inner) * width * tokens
        moved += (forward + 1) * _RESIDUAL_TRAFFIC * m.width * width * tokens * m.reduces_output
        reduced += (forward if m.reduces_output else 1) * m.width * width * tokens
        reductions += (forward if m.reduces_output else 1) * m.layers
    times = work.parts * members / at_once
    kept = _kept_bytes(config, work, mesh.model)
    read = weight_bytes(config, work.dtype, dataclasses.replace(mesh, fsdp=False))
    traffic = rows * (moved + _KEPT_TRAFFIC * kept) + (2 + full) * read * times
    interconnect = _ring_seconds(rows * reduced, reductions * times, mesh.model, chip)
    interconnect += _ring_seconds(4 * members * work.trained, members / at_once, mesh.data, chip)
    whole = _collected(config, work.dtype, mesh)
    collected = whole.layers * 2 * times * (mesh.data - 1) / mesh.data
    collecting = collected / (_links(mesh.data, chip) * chip.link)
    logits = _LOGIT_MEMORY * work.target * config.vocab_size / mesh.model
    rows_at_once = at_once * work.rows / mesh.data
    working = rows_at_once * _layer_bytes(config, work, mesh.model) + whole.layer
    if work.parts > 1 or at_once < largest:  # tables are collected before the loop, and stay whole during it
        working += sum(whole.tables)
    else:
        working = max((working, *whole.tables))
    temporary = rows_at_once * (kept + logits) + working
    if mesh.fsdp and family(config).causal:
        temporary *= _FSDP_MEMORY
    return Cost(
        memory=weights + _rearranged_bytes(config, work, mesh) + _STATES * members * work.trained + temporary,
        compute=rows * flops / mesh.model / chip.peak,
        transfer=(traffic + collected) / chip.bandwidth,
        interconnect=interconnect + _EXPOSED * collecting,
        overlapped=(1 - _EXPOSED) * collecting,
    )


def _ring_seconds(size: float, count: float, devices: int, chip: Chip) -> float:
    """Return the seconds of `count` all-reduces of `size` bytes together, in a ring of devices."""
    return 2 * (devices - 1) * (size / devices / (_links(devices, chip) * chip.link) + count * HOP)


def _links(devices: int, chip: Chip) -> int:
    """Return how many links of a chip a collective uses: two along each axis that wraps around, one along another."""
    if chip.axes == 0:
        return 1
    links, ring = 0, _RINGS[chip.axes]
    while devices >= ring:
        links, devices = links + 2, devices // ring
    return min(max(links + (devices > 1), 1), 2 * chip.axes)


def fits(cost: Cost, chip: Chip) -> bool:
    """Return whether a device has enough memory."""
    return cost.memory <= USABLE * chip.memory


def evaluation_rows(config: Config, work: Workload, mesh: MeshConfig, chip: Chip, most: int = 1024) -> int:
    """Return the largest power of two of rows that a batch of generation can have; 0 if not even one fits."""
    of_device = generation_row_bytes(config, work) / (mesh.ensemble * mesh.data * mesh.model)
    whole = _collected(config, work.dtype, mesh)
    free = USABLE * chip.memory - weight_bytes(config, work.dtype, mesh) - whole.layer - sum(whole.tables)
    return max((2**n for n in range(int(math.log2(most)) + 1) if 2**n * of_device <= free), default=0)


def generation_row_bytes(config: Config, work: Workload) -> float:
    """Return the bytes that generation needs for a row, beside the base."""
    source = work.source + work.tokens
    of_site = {"decoder_self": work.slots + work.target + source * family(config).causal, "decoder_cross": source}
    # Decoding rearranges the cache that the prefill writes. A TPU then pads heads to 128 numbers.
    cache = sum(
        2 * layers * heads * (width + max(width, 128)) * of_site.get(site, 0)
        for site, (layers, heads, width) in family(config).sites(config).items()
    )
    return cache * _ACTIVATION[work.dtype] + _layer_bytes(config, work, 1)


def weight_bytes(config: Config, dtype: Dtype, mesh: MeshConfig) -> float:
    """Return the bytes of a device's part of the base."""
    total = 0.0
    for parameter in family(config).parameters(config):
        is_sharded = any(getattr(RULES, axis) == "model" for axis in parameter.axes)
        parts = mesh.model if is_sharded else 1
        if mesh.fsdp and len(parameter.shape) > 1 and "buckets" not in parameter.axes:
            parts = mesh.data
        total += _bytes(parameter, dtype) / parts
    return total


class _Collected(NamedTuple):
    """The bytes of weights that `mesh.fsdp` collects; zeros without it."""

    layers: float = 0.0  # of all layers
    layer: float = 0.0  # of one layer of each stack
    tables: tuple[float, ...] = ()  # of each table, and its copy where a device's rows do not fill whole tiles


def _collected(config: Config, dtype: Dtype, mesh: MeshConfig) -> _Collected:
    if not mesh.fsdp:
        return _Collected()
    parameters = family(config).parameters(config)
    layers = [(_bytes(parameter, dtype), parameter.layers) for parameter in parameters if parameter.layers]
    tables = (
        _bytes(parameter, dtype) * (1 if max(parameter.shape) / mesh.data % _TILE == 0 else 2)
        for parameter in parameters
        if not parameter.layers
    )
    return _Collected(sum(size for size, _ in layers), sum(size / depth for size, depth in layers), tuple(tables))


def _bytes(parameter: Parameter, dtype: Dtype) -> float:
    in_layer = parameter.layers is not None and len(parameter.shape) > 1
    return math.prod(parameter.shape) * (parameter.layers or 1) * (_WEIGHT if in_layer else _ACTIVATION)[dtype]


# --------------------------------------------------------------------------------------------------------------
# Meshes


def meshes(config: Config, work: Workload, devices: int) -> Iterator[MeshConfig]:
    """Yield the meshes of exactly this many devices that can shard the members, the rows and the base."""
    sharded = [
        size
        for parameter in family(config).parameters(config)
        for axis, size in zip(parameter.axes, parameter.shape, strict=True)
        if getattr(RULES, axis) == "model" and axis != "vocab"
    ]
    for model in _divisors(math.gcd(devices, *sharded)):
        for ensemble in _divisors(math.gcd(devices // model, *work.groups)):
            data = devices // model // ensemble
            if work.rows % data == 0:
                yield MeshConfig(ensemble=ensemble, data=data, model=model)
                if model == 1 and data > 1:
                    yield MeshConfig(ensemble=ensemble, data=data, fsdp=True)


def choose_mesh(config: Config, work: Workload, chip: Chip, devices: int) -> MeshConfig:
    """Return the mesh with the shortest estimated step among those that fit. It uses as many devices as possible.

    With remat "auto", a mesh has the step of the best remat.

    Raises:
      ConfigError: the run does not fit on any mesh.
    """
    possible = next(found for used in range(devices, 0, -1) if (found := list(meshes(config, work, used))))
    costs = [
        (mesh, training_cost(config, dataclasses.replace(work, remat=remat), mesh, chip))
        for mesh in possible
        for remat in _remats(work)
    ]
    fitting = [(mesh, cost) for mesh, cost in costs if fits(cost, chip)]
    if not fitting:
        least = min(cost.memory for _, cost in costs)
        raise ConfigError(
            f"mesh.auto: no mesh of {devices} devices fits. The best one needs about {least / GIB:.1f} GiB per device, "
            f"and each has {chip.memory / GIB:.1f}. Use more devices, model.remat full, model.dtype int8 or int4, or a "
            "larger train.accumulate"
        )
    return min(fitting, key=lambda each: each[1].seconds)[0]


def choose_remat(config: Config, work: Workload, mesh: MeshConfig, chip: Chip) -> Remat:
    """Return the remat with the shortest estimated step among those that fit; "full" if none does."""
    costs = {
        remat: training_cost(config, dataclasses.replace(work, remat=remat), mesh, chip) for remat in _remats(work)
    }
    fitting = [remat for remat in costs if fits(costs[remat], chip)]
    return min(fitting, key=lambda remat: costs[remat].seconds, default="full")


def _remats(work: Workload) -> tuple[Remat, ...]:
    """Return the possible kinds of recomputation, from none to full."""
    return get_args(Remat) if work.remat == "auto" else (work.remat,)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


# --------------------------------------------------------------------------------------------------------------
# Sizes of a model


def _matrices(config: Config, work: Workload) -> list[_Matrix]:
    found = []
    for parameter in family(config).parameters(config):
        place = re.match(r"(?:(encoder|decoder)/)?layers/\d+/(.*)", parameter.path)
        if place is None or len(parameter.axes) == 1 or "embed" not in parameter.axes:
            continue
        side, name = place.groups()
        is_cross = name in ("cross/k", "cross/v")
        tokens = {"encoder": work.source + work.tokens, "decoder": work.target, None: work.source + work.target}[side]
        width = parameter.shape[parameter.axes.index("embed")]
        outputs = math.prod(parameter.shape) // width
        found.append(
            _Matrix(
                width,
                outputs,
                parameter.layers or 1,
                work.source + work.tokens if is_cross and not _projects_queries(config, work) else tokens,
                reduces_output=parameter.axes[-1] == "embed",
                is_last=name == "mlp/down",
                on_chip=name.startswith("mlp/") and _fuses_feed_forward(config, work, outputs),
            )
        )
    return found


def _fuses_attention(
    config: Config, work: Workload, queries: int, keys: int, heads: int, groups: int, width: int
) -> bool:
    """Return whether `fused_attention` computes attention of this size."""
    itemsize, biased = _ACTIVATION[work.dtype], isinstance(config, T5Config)
    fits_on_chip = fused_attention.fits(keys, width, groups, heads, itemsize, biased=biased)
    return work.fused and queries >= fused_attention.LEAST_QUERIES and fits_on_chip


def _fuses_feed_forward(config: Config, work: Workload, hidden: int) -> bool:
    """Return whether `fused_feed_forward` computes the feed-forward sublayers of this width."""
    if not work.fused or work.remat != "full" or _is_quantized(work.dtype):
        return False
    paths = [parameter.path for parameter in family(config).parameters(config)]
    matrices = 2 + any(path.endswith("mlp/gate") for path in paths)
    return fused_feed_forward.fits(config.d_model, hidden, matrices, _ACTIVATION[work.dtype])


def _projects_queries(config: Config, work: Workload) -> bool:
    """Return whether queries are multiplied by W_k, instead of the encoder's output (`attention.attend_projected`)."""
    return isinstance(config, T5Config) and work.target < config.d_kv


def _scores(config: Config, work: Workload) -> list[_Scores]:
    sites, source, target = family(config).sites(config), work.source + work.tokens, work.target
    if family(config).causal:
        pairs = source * (work.slots + source) + target * (work.slots + source + target)
        layers, groups, width = sites["decoder_self"]
        assert not isinstance(config, BartConfig)  # it has no `num_heads`, and is not causal
        fused = _fuses_attention(config, work, source, source + work.slots, config.num_heads, groups, width)
        return [_Scores(config.num_heads * pairs, layers, width, not fused)]
    keys = {"encoder_self": source, "decoder_self": target, "decoder_cross": source}
    found = []
    for site, (layers, heads, width) in sites.items():
        queries = source if site == "encoder_self" else target
        pairs = queries * (keys[site] + work.slots)
        in_space_of_encoder = site == "decoder_cross" and _projects_queries(config, work)
        in_memory = not _fuses_attention(config, work, queries, keys[site] + work.slots, heads, heads, width)
        found.append(_Scores(heads * pairs, layers, config.d_model if in_space_of_encoder else width, in_memory))
    return found


def _kept_bytes(config: Config, work: Workload, model: int) -> float:
    """Return the bytes of a row's activations that are kept for the backward pass."""
    width, matrices, scores = _ACTIVATION[work.dtype], _matrices(config, work), _scores(config, work)
    outputs = [(m.width if m.reduces_output else m.sharded_width / model) * m.tokens * m.layers for m in matrices]
    kept = 0.0
    match work.remat:
        case "full":  # the inputs of the layers
            kept = width * sum(m.width * m.tokens * m.layers for m in matrices if m.is_last)
        case "dots":
            kept = width * sum(outputs)
        case "none":  # also the results of activation functions and norms
            in_memory = sum(s.number * s.layers for s in scores if s.in_memory)
            factor = 1.3 if isinstance(config, LlamaConfig) else 2  # fitted
            kept = factor * width * sum(outputs) + (4 + width) * in_memory / model
            kept += 4 * sum(s.layers for s in scores) * _normalized_numbers(config, work) / model
    return kept


def _rearranged_bytes(config: Config, work: Workload, mesh: MeshConfig) -> float:
    """Return the bytes of quantized projections to heads, which the TPU compiler copies into another layout."""
    if not family(config).causal or mesh.fsdp or not _is_quantized(work.dtype):
        return 0.0
    found = (p for p in family(config).parameters(config) if p.layers and p.axes[0] == "embed" and "kv" in p.axes)
    return sum(_bytes(parameter, work.dtype) for parameter in found) / mesh.model


def _is_quantized(dtype: Dtype) -> bool:
    return _WEIGHT[dtype] < _ACTIVATION[dtype]


def _layer_bytes(config: Config, work: Workload, model: int) -> float:
    """Return the bytes of a row's activations in one layer of each stack."""
    products = sum((m.width + m.sharded_width / model) * m.tokens for m in _matrices(config, work))
    scores = sum(each.number for each in _scores(config, work) if each.in_memory) / model
    normed = _normalized_numbers(config, work) / model
    return products * _ACTIVATION[work.dtype] + scores * _SCORE_MEMORY + normed * _NORM_MEMORY


def _normalized_numbers(config: Config, work: Workload) -> int:
    """Return how many numbers of a row's queries and keys are normalized in one layer, in float32."""
    if not isinstance(config, LlamaConfig) or not config.qk_norm:
        return 0
    return (config.num_heads + config.kv_heads) * config.d_kv * (work.source + work.target)
