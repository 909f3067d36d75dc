"""Tests of the analytic estimate, against figures of compiled programs and counts by hand."""

import dataclasses
import itertools

import pytest

from prompt_jax.checkpoints.config_files import model_config
from prompt_jax.checkpoints.load import load_config
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.distributed.chips import CHIPS, GIB
from prompt_jax.distributed.costs import (
    Workload,
    choose_mesh,
    choose_remat,
    evaluation_rows,
    fits,
    generation_row_bytes,
    meshes,
    takes_kernel,
    training_cost,
    weight_bytes,
)
from prompt_jax.errors import ConfigError
from prompt_jax.models import bart, fused_attention
from tools.planner.programs import base_config

SIZES = {"small": (512, 1024, 8, 6), "base": (768, 2048, 12, 12), "large": (1024, 2816, 24, 16)}
SIZES |= {"xl": (2048, 5120, 24, 32), "xxl": (4096, 10240, 24, 64)}
# 32 prompts of 100 tokens with a batch of 32 each, one at a time on a device; rows of 512 + 16 tokens.
WORK = Workload((32,), 1, 32, 1, 512, 16, 100, 0, 100 * 1024, "bfloat16", "full")


def t5(size: str):
    width, inner, depth, heads = SIZES[size]
    raw = {"model_type": "t5", "vocab_size": 32128, "d_kv": 64, "feed_forward_proj": "gated-gelu"}
    raw |= {"d_model": width, "d_ff": inner, "num_layers": depth, "num_heads": heads, "tie_word_embeddings": False}
    return model_config(raw, {}, source=size)


# Figures of programs from libtpu 0.0.42, without fused attention: GiB of arguments and temporaries, and milliseconds of
# computation, memory traffic and collectives. Meshes are ensemble, data, model.
COMPILED = [
    ("v4", "large", (16, 1, 1), 4.70, 301, 337, 0),
    ("v4", "xl", (16, 1, 1), 12.03, 1078, 764, 0),
    ("v5e", "base", (16, 1, 1), 2.23, 121, 177, 0),
    ("v5e", "xl", (8, 1, 2), 7.44, 1504, 1633, 1277),
    ("v5e", "xl", (32, 4, 2), 3.62, 94, 75.1, 79.7),
    ("v5e", "xxl", (32, 1, 8), 8.37, 364, 436, 1123),
    ("v5p", "large", (32, 1, 1), 4.71, 90.3, 97.1, 0),
    ("v5p", "xxl", (32, 1, 1), 34.28, 1249, 422, 0),
    ("v6e", "base", (16, 1, 1), 2.99, 26.5, 111, 0),
    ("v6e", "xl", (16, 1, 1), 13.90, 325, 662, 0),
    ("v6e", "xxl", (4, 1, 4), 13.41, 1255, 2468, 3819),
]


@pytest.mark.parametrize("chip, size, mesh, memory, compute, transfer, interconnect", COMPILED)
def test_the_estimate_is_close_to_compiled_programs(chip, size, mesh, memory, compute, transfer, interconnect):
    actual = training_cost(t5(size), WORK, MeshConfig(*mesh), CHIPS[chip])
    assert actual.compute * 1e3 == pytest.approx(compute, rel=0.03)
    assert actual.interconnect * 1e3 == pytest.approx(interconnect, rel=0.03)
    assert actual.transfer * 1e3 == pytest.approx(transfer, rel=0.25)
    assert actual.memory / GIB == pytest.approx(memory, rel=0.35 if size == "base" else 0.12)


def test_fused_attention_and_a_fully_sharded_base():
    """T5-XXL, 32 x 8 x 1 on v5e-256: libtpu's program has 4.1 GiB, 365 ms of computation, 204 ms of memory traffic. It
    collects 44.0 GB in 776 ms, of which 250 ms are exposed."""
    work = dataclasses.replace(WORK, fused=True)
    actual = training_cost(t5("xxl"), work, MeshConfig(32, 8, fsdp=True), CHIPS["v5e"])
    assert actual.compute * 1e3 == pytest.approx(365, rel=0.03)
    assert actual.transfer * 1e3 == pytest.approx(204, rel=0.25)
    assert (actual.interconnect + actual.overlapped) * 1e3 == pytest.approx(776, rel=0.05)
    assert actual.interconnect * 1e3 == pytest.approx(250, rel=0.1)
    assert actual.memory / GIB == pytest.approx(4.1, rel=0.25)


@pytest.mark.parametrize(("chip", "transfer"), [("v5e", 59.3), ("v6e", 32.8)])
def test_fused_feed_forward_sublayers(chip, transfer):
    """T5-base: milliseconds of memory traffic of two members in libtpu's program."""
    work = dataclasses.replace(WORK, fused=True)
    actual = training_cost(t5("base"), work, MeshConfig(16), CHIPS[chip])
    assert actual.transfer * 1e3 == pytest.approx(transfer, rel=0.3)
    kept = dataclasses.replace(work, remat="dots")
    assert training_cost(t5("base"), kept, MeshConfig(16), CHIPS[chip]).transfer > 1.2 * actual.transfer


# GiB of programs for int8 bases, batches of 32 rows, 2,048 + 16 tokens, remat full. Meshes are ensemble, data.
CAUSAL = [
    ("meta-llama/Meta-Llama-3-8B", "v5e", (1, 8), False, 12.84),
    ("meta-llama/Meta-Llama-3-8B", "v5p", (8, 4), False, 15.67),
    ("meta-llama/Meta-Llama-3-70B", "v5p", (4, 8), False, 82.2),
    ("Qwen/Qwen3-0.6B", "v5e", (4, 2), False, 5.8),
    ("Qwen/Qwen3-32B", "v5p", (8, 4), False, 48.84),
    ("Qwen/Qwen3-32B", "v5e", (8, 32), True, 5.47),
    ("google/gemma-3-27b-pt", "v5p", (8, 4), False, 44.27),
    ("google/gemma-3-27b-pt", "v5e", (8, 32), True, 7.6),
    ("meta-llama/Meta-Llama-3-70B", "v5e", (8, 32), True, 7.01),
]


@pytest.mark.parametrize("name, chip, sizes, fsdp, memory", CAUSAL)
def test_the_memory_of_causal_models(name, chip, sizes, fsdp, memory):
    config = base_config(name)
    actual = training_cost(config, causal_work(config), MeshConfig(*sizes, fsdp=fsdp), CHIPS[chip])
    assert actual.memory / GIB == pytest.approx(memory, rel=0.07)


def test_whole_tables_stay_beside_a_loop_over_members_or_parts():
    """GiB of fully sharded programs on v5e: Llama 3 70B, 1 x 8 x 1 in 4 parts; T5-XXL, 8 x 2 x 1 in 2 parts."""
    config = base_config("meta-llama/Meta-Llama-3-70B")
    work = dataclasses.replace(causal_work(config), rows=8, parts=4)
    llama = training_cost(config, work, MeshConfig(1, 8, fsdp=True), CHIPS["v5e"])
    assert llama.memory / GIB == pytest.approx(16.6, rel=0.05)
    work = dataclasses.replace(WORK, rows=16, parts=2, fused=True)
    xxl = training_cost(t5("xxl"), work, MeshConfig(8, 2, fsdp=True), CHIPS["v5e"])
    assert xxl.memory / GIB == pytest.approx(13.5, rel=0.03)


def test_the_collectives_of_a_causal_model():
    """Llama 3 70B, 8 x 32 x 1 on v5e-256: libtpu's program collects 141 GB in 928 ms, of which 238 ms are exposed."""
    config = base_config("meta-llama/Meta-Llama-3-70B")
    actual = training_cost(config, causal_work(config), MeshConfig(8, 32, fsdp=True), CHIPS["v5e"])
    assert actual.compute * 1e3 == pytest.approx(4365, rel=0.05)
    assert (actual.interconnect + actual.overlapped) * 1e3 == pytest.approx(928, rel=0.06)
    assert actual.interconnect * 1e3 == pytest.approx(238, rel=0.25)


def test_groups_of_members_are_separate_steps():
    """Each group collects the tables for its own step."""
    config = base_config("meta-llama/Meta-Llama-3-70B")
    work = dataclasses.replace(causal_work(config), rows=8, groups=(4,), at_once=None)
    one, two = (
        training_cost(config, dataclasses.replace(work, groups=groups), MeshConfig(1, 8, fsdp=True), CHIPS["v5e"])
        for groups in ((4,), (4, 2))
    )
    assert two.memory == pytest.approx(one.memory, rel=0.01) and two.compute == pytest.approx(1.5 * one.compute)


@pytest.mark.parametrize("chip, data, links", [("v5e", 8, 1), ("v5e", 16, 2), ("v5e", 32, 3), ("v5e", 512, 4)])
def test_collectives_use_the_links_of_a_torus(chip, data, links):
    """Llama 3 8B in int8. A v5e has four links, and an axis of 16 chips wraps around."""
    config = base_config("meta-llama/Meta-Llama-3-8B")
    work = dataclasses.replace(causal_work(config), groups=(1,), rows=512, trained=0)
    actual = training_cost(config, work, MeshConfig(data=data, fsdp=True), CHIPS[chip])
    matrices = 32 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336)
    collected = 2 * matrices * (data - 1) / data
    assert actual.interconnect + actual.overlapped == pytest.approx(collected / links / 50e9, rel=0.02)


def causal_work(config):
    changes = {"groups": (8,), "source": 2048, "tokens": 0, "slots": 100, "trained": 100 * config.d_model}
    return dataclasses.replace(WORK, dtype="int8", fused=True, **changes)


@pytest.mark.parametrize("remat, large, llama", [("none", 4.10, 4.36), ("dots", 2.72, 3.90), ("full", 1.65, 2.58)])
def test_the_memory_of_each_remat(remat, large, llama):
    """GiB of programs of one member in bfloat16: T5-large with 4 rows, and Llama 3.2 1B with 2 of 1,024 + 16 tokens."""
    work = dataclasses.replace(WORK, groups=(1,), rows=4, remat=remat, fused=True)
    assert training_cost(t5("large"), work, MeshConfig(), CHIPS["v5e"]).memory / GIB == pytest.approx(large, rel=0.1)
    config = base_config("meta-llama/Llama-3.2-1B")
    work = dataclasses.replace(work, rows=2, source=1024, tokens=0, slots=100, trained=100 * config.d_model)
    assert training_cost(config, work, MeshConfig(), CHIPS["v5e"]).memory / GIB == pytest.approx(llama, rel=0.1)


LARGE_SIDE = {"layers": 12, "attention_heads": 16, "ffn_dim": 4096}
GPT2 = {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab_size": 50257}
BART_LARGE = {"model_type": "bart", "d_model": 1024, "vocab_size": 50265, "max_position_embeddings": 1024}
BART_LARGE |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in LARGE_SIDE.items()}


@pytest.mark.parametrize(
    "raw, remat, memory, compute",
    [
        (GPT2, "none", 4.32, 30.4),
        (GPT2, "full", 0.95, 40.3),
        (BART_LARGE, "none", 3.29, 20.3),
        (BART_LARGE, "full", 0.99, 32.3),
    ],
)
def test_gpt2_and_bart(raw, remat, memory, compute):
    """GiB and milliseconds of programs of one member of GPT-2 medium or BART large, 8 rows of 500 + 16 tokens, v5e."""
    config = model_config(raw, {}, source="published")
    size = {"tokens": 0, "slots": 100} if raw is GPT2 else {"tokens": 100, "slots": 0}
    work = dataclasses.replace(WORK, groups=(1,), rows=8, remat=remat, fused=True, source=500, **size)
    actual = training_cost(config, work, MeshConfig(), CHIPS["v5e"])
    assert actual.compute * 1e3 == pytest.approx(compute, rel=0.03)
    assert actual.memory / GIB == pytest.approx(memory, rel=0.2)


def test_weights_by_hand():
    """T5 1.1 small: two vocabularies of width 512; 8 + 8 layers with 6 heads of 64 and a feed-forward width of 1024."""
    embeddings = 2 * 32128 * 512
    matrices = 8 * (3 * 4 * 512 * 384 + 2 * 3 * 512 * 1024)  # three attentions and two feed-forward parts
    norms = 8 * 5 * 512 + 2 * 512 + 2 * 32 * 6
    config = t5("small")
    assert weight_bytes(config, "float32", MeshConfig()) == 4 * (embeddings + matrices + norms)
    # Norms are replicated, and relative biases are sharded over the heads.
    sharded = 2 * (embeddings + matrices + 2 * 32 * 6) / 2 + 2 * (8 * 5 * 512 + 2 * 512)
    assert weight_bytes(config, "bfloat16", MeshConfig(model=2)) == sharded
    for dtype, of_weight in (("int8", 1), ("fp8", 1), ("int4", 0.5 + 2 / 64)):
        expected = 2 * embeddings + of_weight * matrices + 2 * norms
        assert weight_bytes(config, dtype, MeshConfig()) == pytest.approx(expected, rel=1e-3)


def test_meshes_divide_the_members_the_rows_and_the_heads():
    work = dataclasses.replace(WORK, groups=(4, 6), rows=8)
    found = [(mesh.ensemble, mesh.data, mesh.model) for mesh in meshes(t5("small"), work, 16)]
    assert found == [(2, 8, 1), (2, 8, 1), (1, 8, 2), (2, 4, 2)]  # 6 heads cannot be divided over 4 devices
    assert [mesh.fsdp for mesh in meshes(t5("small"), work, 16)] == [False, True, False, False]


def test_the_chosen_mesh_is_the_fastest_that_fits():
    xl, chip = t5("xl"), CHIPS["v5e"]
    assert choose_mesh(xl, WORK, chip, 32) == MeshConfig(ensemble=32)  # no collectives, and the base fits
    mesh = choose_mesh(t5("xxl"), WORK, chip, 256)
    assert mesh.model > 1  # 20.7 GiB in bfloat16 on chips with 16
    costs = {each: training_cost(t5("xxl"), WORK, each, chip) for each in meshes(t5("xxl"), WORK, 256)}
    assert costs[mesh].seconds == min(cost.seconds for cost in costs.values() if fits(cost, chip))
    # 7 devices cannot share one member with 32 rows and 32 heads; 4 can.
    one = dataclasses.replace(WORK, groups=(1,))
    assert choose_mesh(xl, one, chip, 7) == MeshConfig(data=4)


def test_a_mesh_is_chosen_with_its_best_remat():
    """T5-XL on 8 chips: a batch over all chips needs no recomputation. One member per chip needs it."""
    work = dataclasses.replace(WORK, groups=(8,), fused=True, remat="auto")
    assert choose_mesh(t5("xl"), work, CHIPS["v5e"], 8) == MeshConfig(data=8)
    assert choose_mesh(t5("xl"), dataclasses.replace(work, remat="full"), CHIPS["v5e"], 8) == MeshConfig(ensemble=8)
    for mesh, remat in ((MeshConfig(data=8), "none"), (MeshConfig(ensemble=8), "full")):
        assert choose_remat(t5("xl"), work, mesh, CHIPS["v5e"]) == remat


def test_recomputation_may_be_faster():
    """T5-base on a v6e chip: with remat full, a kernel keeps the feed-forward activations on the chip."""
    work = dataclasses.replace(WORK, groups=(1,), fused=True, remat="auto")
    assert choose_remat(t5("base"), work, MeshConfig(), CHIPS["v6e"]) == "full"
    assert choose_remat(t5("large"), dataclasses.replace(work, rows=4), MeshConfig(), CHIPS["v5e"]) == "dots"
    assert choose_remat(t5("base"), work, MeshConfig(), dataclasses.replace(CHIPS["v5e"], memory=2**20)) == "full"


def test_keys_that_do_not_fit_on_the_chip_have_scores_in_memory():
    """As Llama 3.2 1B with 2 rows of 16,384 tokens."""
    config = base_config("meta-llama/Llama-3.2-1B")
    work = dataclasses.replace(WORK, groups=(1,), rows=2, source=8192, tokens=0, slots=100, fused=True)
    short, long = (
        training_cost(config, dataclasses.replace(work, source=source), MeshConfig(), CHIPS["v5p"]).memory
        for source in (8192, 16384)
    )
    assert long > 2 * short + 2 * 32 * 16384**2 * 8


BART = bart.BartConfig(
    vocab_size=1000,
    positions=1024,
    d_model=256,
    encoder_layers=4,
    encoder_heads=4,
    encoder_d_ff=512,
    decoder_layers=2,
    decoder_heads=2,
    decoder_d_ff=1024,
)


def test_an_encoder_and_a_decoder_of_different_sizes_by_hand():
    """BART with another number of layers and heads, and other widths, in the decoder. No prompt, one row."""
    work = Workload((1,), None, 1, 1, 300, 50, 0, 0, 0, "bfloat16", "none")
    attention, source, target = 4 * 256 * 256, 300, 50
    encoder = 4 * (attention + 2 * 256 * 512) * source
    decoder = 2 * ((attention + 2 * 256 * 1024 + attention / 2) * target + attention / 2 * source)
    logits = 256 * 1000 * target
    # The products of queries with keys, and of weights with values, have twice as many products in the backward pass.
    scores = 2 * 256 * (4 * source**2 + 2 * (target**2 + target * source))
    flops = 2 * (2 * (encoder + decoder + logits) + 3 * scores)
    assert training_cost(BART, work, MeshConfig(), CHIPS["v5e"]).compute * 197e12 == pytest.approx(flops)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_kernels_take_an_encoder_and_a_decoder_of_different_sizes(remat):
    """Where they do, less goes through memory."""
    plain = Workload((8,), 1, 32, 1, 512, 128, 0, 10, 10 * 256, "bfloat16", remat)
    fused = dataclasses.replace(plain, fused=True)
    costs = [training_cost(BART, work, MeshConfig(), CHIPS["v5e"]) for work in (plain, fused)]
    assert costs[1].transfer < costs[0].transfer and costs[1].memory < costs[0].memory


@pytest.mark.parametrize("name", ["t5_v11", "gpt2", "bart", "llama", "gemma2"])
def test_every_family_has_an_estimate(name, fixtures, monkeypatch):
    config = load_config(fixtures / name / "base")
    for fused, remat in itertools.product([False, True], ["none", "dots", "full"]):
        work = Workload((2,), None, 8, 1, 64, 32, 0, 5, 100, "bfloat16", remat, fused)
        cost = training_cost(config, work, MeshConfig(), CHIPS["v6e"])
        assert 0 < cost.memory < GIB and cost.compute > 0 and cost.transfer > 0
        assert evaluation_rows(config, work, MeshConfig(), CHIPS["v6e"]) > 1
        assert choose_mesh(config, dataclasses.replace(work, remat="auto"), CHIPS["v6e"], 2).ensemble == 2
    monkeypatch.setattr(fused_attention, "platform", lambda: "gpu")
    assert takes_kernel(config, "bfloat16") == (name != "gemma2")  # has a soft cap
    assert not takes_kernel(config, "float32") and not takes_kernel(config, "bfloat16", 0.1)


def test_a_run_that_fits_on_no_mesh():
    with pytest.raises(ConfigError, match=r"no mesh of 1 devices fits. The best one needs about \d+\.\d GiB .* 16.0"):
        choose_mesh(t5("xxl"), WORK, CHIPS["v5e"], 1)


def test_less_remat_takes_more_memory_and_less_time():
    full, dots, none = (
        training_cost(t5("base"), dataclasses.replace(WORK, remat=remat), MeshConfig(), CHIPS["v5e"])
        for remat in ("full", "dots", "none")
    )
    assert full.memory < dots.memory < none.memory
    assert full.compute > dots.compute > none.compute


def test_members_at_once_share_the_reads_of_the_base():
    work = dataclasses.replace(WORK, rows=1)
    one, all_members = (
        training_cost(t5("xl"), dataclasses.replace(work, at_once=count), MeshConfig(), CHIPS["v5e"])
        for count in (1, 32)
    )
    base = weight_bytes(t5("xl"), "bfloat16", MeshConfig())
    assert (one.transfer - all_members.transfer) * CHIPS["v5e"].bandwidth == pytest.approx(31 * 3 * base)
    assert one.memory < all_members.memory


def test_evaluation_rows():
    """With T5-XL in int8, libtpu's program for 32 rows needs 10.9 GiB beside the base. In bfloat16, 32 do not fit."""
    of_row = generation_row_bytes(t5("xl"), dataclasses.replace(WORK, fused=True))
    assert 32 * of_row / GIB == pytest.approx(10.9, rel=0.2)
    rows = evaluation_rows(t5("xl"), WORK, MeshConfig(), CHIPS["v5e"])
    assert rows == 16
    assert evaluation_rows(t5("xl"), WORK, MeshConfig(ensemble=4, data=2), CHIPS["v5e"]) == 8 * rows
    assert evaluation_rows(t5("xxl"), WORK, MeshConfig(), CHIPS["v5e"]) == 0
