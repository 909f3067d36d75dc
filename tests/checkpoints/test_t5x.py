"""T5X checkpoints: models and prompts in them, and damaged or hostile files."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import prompt_jax
import t5x_checkpoints
from adapters import assert_close, forward_batch, random_prefix, random_text, random_tokens, whole
from fuzzing import FUZZ
from prompt_jax.checkpoints import flax_msgpack, t5x
from prompt_jax.checkpoints.weights import stored_shape
from prompt_jax.cli import main
from prompt_jax.errors import CheckpointError
from prompt_jax.models import t5
from prompt_jax.prompt_files.io import PromptFormatError, load_prompt, read_prompt
from t5x_checkpoints import PROMPT, SMALL, ZARR, rewrite

SCANNED = (None, "flaxformer", "t5x")
SHARED = Path(__file__).parents[3] / "shared" / "fixtures" / "t5x"
in_shared = pytest.mark.skipif(not SHARED.exists(), reason="the checkpoint of T5X is not on this machine")


def arrays_of(base: Path, scanned: str | None = None) -> dict[str, np.ndarray]:
    heads = json.loads((base / "config.json").read_text())["num_heads"]
    return t5x_checkpoints.arrays_of(load_file(base / "model.safetensors"), heads, scanned)


def own_positions(base: Path, scanned: str) -> dict[str, np.ndarray]:
    """Arrays of a scanned model with different relative positions in each layer."""
    rng, arrays = np.random.default_rng(0), arrays_of(base, scanned)
    changed = {path: rng.normal(size=array.shape) for path, array in arrays.items() if path.endswith("rel_embedding")}
    return arrays | {path: array.astype(np.float32) for path, array in changed.items()}


@pytest.mark.parametrize("scanned", SCANNED)
@pytest.mark.parametrize("name", ("t5_v11", "t5_v10"))
def test_a_model_is_hugging_faces(fixtures, tmp_path, name, scanned):
    base = fixtures / name / "base"
    arrays = arrays_of(base, scanned)
    arrays[PROMPT] = np.ones((2, 3), np.float32)  # a tuned checkpoint contains its whole base
    folder = t5x_checkpoints.write(tmp_path / "checkpoint_3", arrays)
    theirs, ours = prompt_jax.load_model(str(base)), prompt_jax.load_model(f"t5x:{folder}")
    assert ours.fingerprint == theirs.fingerprint and ours.name == f"t5x:{folder}"
    assert ours.config == dataclasses.replace(theirs.config, dropout_rate=ours.config.dropout_rate)
    reference = np.load(fixtures / name / "reference.npz")
    logits = prompt_jax.forward(ours.params, ours.config, forward_batch(reference))
    assert_close(logits, reference["base/logits"])


@pytest.mark.parametrize("dtype", (np.float16, ml_dtypes.bfloat16, np.float64))
@pytest.mark.parametrize("compressor", ("gzip", None))
def test_dtypes_are_read_as_stored(fixtures, tmp_path, dtype, compressor):
    arrays = {path: array.astype(dtype) for path, array in arrays_of(fixtures / "t5_v11" / "base").items()}
    folder = t5x_checkpoints.write(tmp_path / "c", arrays, compressor=compressor)
    _, tensors = t5x.open_t5x(folder)
    read = tensors["shared.weight"].read()
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, arrays["token_embedder/embedding"])
    read = tensors["decoder.block.1.layer.1.EncDecAttention.o.weight"].read()
    np.testing.assert_array_equal(read, arrays["decoder/layers_1/encoder_decoder_attention/out/kernel"].T)


def test_it_has_a_tokenizer_where_one_is_put(tiny_folder, tmp_path):
    folder = t5x_checkpoints.write(tmp_path / "c", arrays_of(tiny_folder))
    assert prompt_jax.load_model(f"t5x:{folder}").tokenizer is None
    shutil.copy(tiny_folder / "spiece.model", folder)
    assert prompt_jax.load_model(f"t5x:{folder}").tokenizer.vocab_size > 100


# --------------------------------------------------------------------------------------------------------------
# Relative positions in each layer, as scanned models have them


@pytest.fixture(scope="module", params=SCANNED[1:])
def per_layer(request, fixtures, tmp_path_factory):
    base = fixtures / "t5_v11" / "base"
    folder = t5x_checkpoints.write(tmp_path_factory.mktemp("c") / "c", own_positions(base, request.param))
    return prompt_jax.load_model(f"t5x:{folder}")


def test_layers_have_separate_positions(per_layer, fixtures):
    assert per_layer.config.relative_per_layer
    base = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))
    assert per_layer.fingerprint != base.fingerprint
    assert len(t5.parameters(per_layer.config)) == len(t5.parameters(base.config))
    # If all layers have the first layer's positions, the model is an ordinary T5.
    config = dataclasses.replace(per_layer.config, relative_per_layer=False)
    alike, plain = dict(per_layer.params), dict(per_layer.params)
    for side in ("encoder", "decoder"):
        (stack,) = alike[side]["layers"]
        table = stack["self"]["relative_bias"]
        own = {**stack["self"], "relative_bias": table.at[:].set(table[:1])}
        alike[side] = {**alike[side], "layers": ({**stack, "self": own},)}
        without = {name: leaf for name, leaf in own.items() if name != "relative_bias"}
        plain[side] = {**alike[side], "layers": ({**stack, "self": without},), "relative_bias": table[0]}
    batch = whole(random_text(base, 2, 7)) | {"decoder_inputs": random_text(base, 2, 5, seed=1)}
    prompt = random_prefix(per_layer, 3)
    expected = prompt_jax.forward(plain, config, batch, prompt)
    assert_close(prompt_jax.forward(alike, per_layer.config, batch, prompt), expected)
    assert (
        np.abs(np.asarray(prompt_jax.forward(per_layer.params, per_layer.config, batch, prompt)) - expected).max()
        > 0.01
    )


def test_generation_with_them_is_the_argmax_of_forward(per_layer):
    batch = whole(random_text(per_layer, 3, 6))
    for prompt in (None, random_prefix(per_layer, 2), random_tokens(per_layer, 4)):
        tokens = np.asarray(prompt_jax.generate(per_layer.params, per_layer.config, batch, prompt, max_new_tokens=6))
        fed = np.concatenate([np.zeros((3, 1), np.int32), tokens[:, :-1]], axis=1)
        logits = prompt_jax.forward(per_layer.params, per_layer.config, batch | {"decoder_inputs": fed}, prompt)
        going = np.cumprod(fed[:, 1:] != 1, axis=1, dtype=bool)
        best = np.argmax(logits, axis=-1)
        assert (best[:, 0] == tokens[:, 0]).all()
        np.testing.assert_array_equal(best[:, 1:][going], tokens[:, 1:][going])


# --------------------------------------------------------------------------------------------------------------
# Prompts


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("inline", (False, True))
def test_a_prompt_in_a_checkpoint(tiny_folder, tmp_path, monkeypatch, capsys, dtype, inline):
    values = np.random.default_rng(0).normal(size=(5, 64)).astype(dtype)
    name = PROMPT if not inline else f"{PROMPT}/rel_embedding"  # which is written into the file `checkpoint`
    folder = t5x_checkpoints.write(tmp_path / "checkpoint_9", {**arrays_of(tiny_folder), name: values})
    prompt, metadata = read_prompt(folder)
    np.testing.assert_array_equal(prompt.encoder_tokens.embeddings, values.astype(np.float32))
    assert metadata.base is None
    assert main(["export", str(folder), str(tmp_path / "p.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), values.astype(np.float32))
    shutil.copy(tiny_folder / "spiece.model", folder)
    monkeypatch.chdir(tmp_path)
    assert main(["import", "checkpoint_9", "p.npz", "--model", "t5x:checkpoint_9"]) == 0
    assert read_prompt("p.npz")[1].base.name == "t5x:checkpoint_9"
    capsys.readouterr()
    # The same model in Hugging Face's layout is the same base.
    assert main(["predict", "p.npz", "a good film", "--model", str(tiny_folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_checkpoint_without_a_prompt_or_with_two(fixtures, tmp_path):
    arrays = {PROMPT: np.ones((2, 3), np.float32), "encoder/prompt/other": np.ones((2, 3), np.float32)}
    with pytest.raises(PromptFormatError, match="several prompts: encoder/prompt/other, encoder/prompt/prompt/prompt"):
        load_prompt(t5x_checkpoints.write(tmp_path / "two", arrays))
    folder = t5x_checkpoints.write(tmp_path / "none", arrays_of(fixtures / "t5_v11" / "base"))
    with pytest.raises(PromptFormatError, match="no prompt; expected"):
        load_prompt(folder)
    folder = t5x_checkpoints.write(tmp_path / "flat", {PROMPT: np.ones(3, np.float32)})
    with pytest.raises(PromptFormatError, match=r"prompt is \[3\]; a prompt is \[P, D\]"):
        load_prompt(folder)
    folder = t5x_checkpoints.write(tmp_path / "infinite", {PROMPT: np.full((2, 3), np.inf, np.float32)})
    with pytest.raises(PromptFormatError, match="6 values that are not finite"):
        load_prompt(folder)


# --------------------------------------------------------------------------------------------------------------
# The authors' own checkpoint


@in_shared
def test_the_authors_checkpoint():
    model = prompt_jax.load_model(f"t5x:{SHARED / 'tiny' / 'checkpoint_3'}")
    config = model.config
    assert (config.encoder_layers, config.decoder_layers, config.d_model, config.d_ff) == (2, 2, 4, 8)
    assert (config.num_heads, config.d_kv, config.vocab_size, config.tied_output) == (2, 2, 32128, False)
    batch = whole(random_text(model, 2, 5)) | {"decoder_inputs": random_text(model, 2, 3, seed=1)}
    logits = prompt_jax.forward(model.params, config, batch)
    assert logits.shape == (2, 3, 32128) and np.isfinite(logits).all()


@pytest.mark.interop
@in_shared
def test_the_authors_checkpoint_in_pytorch():
    """Logits of Hugging Face's model with weights mapped by its conversion script."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    folder = SHARED / "tiny" / "checkpoint_3"
    ours = prompt_jax.load_model(f"t5x:{folder}")
    config = transformers.T5Config(
        vocab_size=32128, d_model=4, d_kv=2, d_ff=8, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=4, tie_word_embeddings=False, dropout_rate=0.0,
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    import tensorstore
    from flax import serialization

    target = serialization.msgpack_restore((folder / "checkpoint").read_bytes())["optimizer"]["target"]

    def array(path: str) -> np.ndarray:
        leaf = target
        for key in path.split("/"):
            leaf = leaf[key]
        if isinstance(leaf, np.ndarray):
            return leaf
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/target.{path.replace('/', '.')}/"}}
        return tensorstore.open(spec).result().read().result()

    state = {
        "shared.weight": array("token_embedder/embedding"),
        "lm_head.weight": array("decoder/logits_dense/kernel").T,
        "encoder.final_layer_norm.weight": array("encoder/encoder_norm/scale"),
        "decoder.final_layer_norm.weight": array("decoder/decoder_norm/scale"),
    }
    for side in ("encoder", "decoder"):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        state[bias] = array(f"{side}/relpos_bias/rel_embedding").T
        sites = [("attention" if side == "encoder" else "self_attention", "SelfAttention")]
        sites += [("encoder_decoder_attention", "EncDecAttention")] if side == "decoder" else []
        for i in range(2):
            block = f"{side}.block.{i}.layer"
            for number, (site, name) in enumerate(sites):
                norm = {"attention": "attention", "self_attention": "self_attention"}.get(site, "cross_attention")
                state[f"{block}.{number}.layer_norm.weight"] = array(f"{side}/layers_{i}/pre_{norm}_layer_norm/scale")
                for own, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
                    kernel = array(f"{side}/layers_{i}/{site}/{own}/kernel")
                    state[f"{block}.{number}.{name}.{letter}.weight"] = kernel.T
            last = len(sites)
            state[f"{block}.{last}.layer_norm.weight"] = array(f"{side}/layers_{i}/pre_mlp_layer_norm/scale")
            for own in ("wi_0", "wi_1", "wo"):
                kernel = array(f"{side}/layers_{i}/mlp/{own}/kernel")
                state[f"{block}.{last}.DenseReluDense.{own}.weight"] = kernel.T
    theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(32128, 4))  # Transformers 5 ties it
    missing, unexpected = theirs.load_state_dict(
        {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}, strict=False
    )
    assert not unexpected and all(name.endswith("embed_tokens.weight") for name in missing)
    text, target_ids = random_text(ours, 2, 6), random_text(ours, 2, 4, seed=1)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(text).long(), decoder_input_ids=torch.tensor(target_ids).long()
        ).logits.numpy()
    assert_close(prompt_jax.forward(ours.params, ours.config, whole(text) | {"decoder_inputs": target_ids}), expected)


@pytest.mark.interop
@pytest.mark.parametrize("scanned", SCANNED[1:])
def test_positions_of_each_layer_in_pytorch(tmp_path, scanned):
    """UMT5 is Hugging Face's T5 with relative positions in each layer."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.UMT5Config(
        vocab_size=96, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = transformers.UMT5ForConditionalGeneration(config).eval()
    theirs.config.tie_word_embeddings = False  # Transformers 5 sets it to true and then scales the output
    theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(96, 16))
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    tensors = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    folder = t5x_checkpoints.write(tmp_path / "c", t5x_checkpoints.arrays_of(tensors, 2, scanned))
    ours = prompt_jax.load_model(f"t5x:{folder}")
    assert ours.config.relative_per_layer
    text, target_ids = random_text(ours, 3, 9), random_text(ours, 3, 12, seed=1)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(text).long(), decoder_input_ids=torch.tensor(target_ids).long()
        ).logits.numpy()
    assert_close(prompt_jax.forward(ours.params, ours.config, whole(text) | {"decoder_inputs": target_ids}), expected)


# --------------------------------------------------------------------------------------------------------------
# Damaged and malicious files


DAMAGED_FILES = {
    "twice": (lambda f: (f / ZARR).rename(f / "target.encoder.encoder_norm.scale"), "encoder/encoder_norm/scale is in"),
    "cut file": (rewrite("checkpoint", lambda b: b[:-1]), "bytes are missing"),
    "empty file": (rewrite("checkpoint", lambda b: b""), "is empty"),
    "a pickle": (rewrite("checkpoint", lambda b: b"\x80\x04\x95."), "is not a complete Flax checkpoint"),
}


@pytest.mark.parametrize("case", DAMAGED_FILES)
def test_errors_name_the_problem(checkpoint, case):
    damage, message = DAMAGED_FILES[case]
    damage(checkpoint)
    with pytest.raises(PromptFormatError, match=message):
        load_prompt(checkpoint)


def test_other_folders_are_refused(checkpoint, tmp_path, fixtures):
    for name, message in (
        ("t5x:nowhere", "nowhere is not a folder"),
        (f"t5x:{tmp_path}", "name one of those in it: checkpoint_1"),
        (f"t5x:{fixtures / 'gpt2' / 'base'}", "it has no file 'checkpoint'"),
        (f"t5x:{checkpoint}", r"not of a T5: shared.weight is missing"),
    ):
        with pytest.raises(CheckpointError, match=message):
            prompt_jax.load_model(name)
    with pytest.raises(CheckpointError, match="has no revision 'main'"):
        prompt_jax.load_model(f"t5x:{checkpoint}", revision="main")


def test_missing_and_surplus_arrays_are_listed(fixtures, tmp_path):
    arrays = arrays_of(fixtures / "t5_v11" / "base")
    del arrays["decoder/layers_1/mlp/wo/kernel"]
    arrays["decoder/layers_1/moe/router"] = np.ones((2, 2), np.float32)
    with pytest.raises(
        CheckpointError, match="(?s)1 missing:.*decoder.block.1.layer.2.DenseReluDense.wo.*1 surplus:.*moe"
    ):
        prompt_jax.load_model(f"t5x:{t5x_checkpoints.write(tmp_path / 'c', arrays)}")


def test_a_copy_that_is_not_whole(fixtures, tmp_path):
    """Without its output weights it would be a T5 1.0, whose output weights are tied."""
    folder = t5x_checkpoints.write(tmp_path / "c", arrays_of(fixtures / "t5_v11" / "base"))
    shutil.rmtree(folder / "target.decoder.logits_dense.kernel")
    with pytest.raises(CheckpointError, match="1 folders are missing, the first is target.decoder.logits_dense.kernel"):
        prompt_jax.load_model(f"t5x:{folder}")
    folder = t5x_checkpoints.write(tmp_path / "p", SMALL)
    shutil.rmtree(folder / ZARR)
    with pytest.raises(PromptFormatError, match=f"{ZARR} is missing"):
        load_prompt(folder)


def test_paths_that_go_up(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    np.testing.assert_array_equal(load_prompt("../checkpoint_1").encoder_tokens.embeddings, SMALL[PROMPT])


def test_values_that_are_not_finite(fixtures, tmp_path):
    arrays = arrays_of(fixtures / "t5_v11" / "base")
    for name in ("encoder/layers_0/mlp/wo/kernel", "encoder/encoder_norm/scale"):
        damaged = arrays | {name: np.where(np.arange(arrays[name].size).reshape(arrays[name].shape) == 3, np.nan, 1.0)}
        folder = t5x_checkpoints.write(tmp_path / name.replace("/", "_"), damaged)
        with pytest.raises(CheckpointError, match="1 values that are not finite"):
            prompt_jax.load_model(f"t5x:{folder}")


def test_errors_name_the_right_folder(checkpoint, tmp_path):
    with pytest.raises(PromptFormatError, match="has T5X checkpoints; name one of them: checkpoint_1"):
        load_prompt(tmp_path)
    for name, message in (
        (str(checkpoint), "for a T5X checkpoint give t5x:"),
        ("t5x:gs://bucket/checkpoint_1", "copy it"),
        ("t5x:~nobody-of-this-name/c", "there is no such user"),
    ):
        with pytest.raises(CheckpointError, match=message):
            prompt_jax.load_model(name)


def forged(shape: tuple[int, ...], data: bytes = b"") -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb([list(shape), "float32", data]))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"encoder": {"encoder": {"mlp": {"wi": {"kernel": forged((0, 2**60))}}}}},
            "layers along axis 1, at most",
        ),
        ({"encoder": {"encoder": {"mlp": {"wi": {"kernel": forged((0, 5))}}}}}, "layers along axis 1"),
        ({"encoder": {"prompt": forged((2**63,) * 300)}}, "has 300 axes"),
        ({"encoder": {"prompt": forged((2**63,) * 8)}}, "has 0 bytes"),
    ],
)
def test_hostile_files_are_refused(tmp_path, target, message):
    (tmp_path / "checkpoint").write_bytes(msgpack.packb({"version": 3, "optimizer": {"target": target}}))
    with pytest.raises(CheckpointError, match=message):
        prompt_jax.load_model(f"t5x:{tmp_path}")


def test_more_objects_than_a_model_has(checkpoint, monkeypatch):
    monkeypatch.setattr(flax_msgpack, "_MAX_OBJECTS", 20)
    with pytest.raises(PromptFormatError, match="a model has at most 20 objects"):
        load_prompt(checkpoint)


def test_duplicate_keys_are_an_error(checkpoint):
    content = (checkpoint / "checkpoint").read_bytes()
    twice = b"\x83" + content[1:] + msgpack.packb("optimizer") + msgpack.packb({})
    (checkpoint / "checkpoint").write_bytes(twice)
    with pytest.raises(PromptFormatError, match="'optimizer' occurs twice"):
        load_prompt(checkpoint)
    (checkpoint / "checkpoint").write_bytes(content)
    file = checkpoint / ZARR / ".zarray"
    file.write_text(file.read_text()[:-1] + ',"shape":[6,4]}')
    with pytest.raises(PromptFormatError, match="'shape' comes twice"):
        load_prompt(checkpoint)


TINY = t5.T5Config(16, 4, 2, 8, 2, encoder_layers=1, decoder_layers=2, relative_buckets=4)


@pytest.fixture(scope="module")
def whole_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Return a prompt and tiny models, scanned and not."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("whole")
    tensors = {}
    for parameter in t5.parameters(TINY):
        for layer in range(parameter.layers or 1):
            tensors[parameter.name.format(layer=layer)] = rng.normal(size=stored_shape(parameter)).astype(np.float32)
    made = {"prompt": t5x_checkpoints.write(folder / "prompt", SMALL, chunks=3)}
    for scanned in SCANNED:
        arrays = t5x_checkpoints.arrays_of(tensors, TINY.num_heads, scanned)
        made[str(scanned)] = t5x_checkpoints.write(folder / str(scanned), arrays, axes=2 if scanned is None else 4)
        prompt_jax.load_model(f"t5x:{made[str(scanned)]}")
    return made


EXTREME = st.sampled_from([0, 1, 2, 3, 999, 1001, 2**31, 2**40, 2**63 - 1])


@FUZZ
@given(st.data())
def test_mutated_checkpoints_are_read_or_refused(whole_checkpoints, tmp_path_factory, data):
    """Truncated or changed files, or other shapes: they load, or raise CheckpointError."""
    folder = tmp_path_factory.getbasetemp() / f"fuzzed{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(data.draw(st.sampled_from(list(whole_checkpoints.values()))), folder)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for name in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        file = folder / name
        content = bytearray(file.read_bytes())
        if file.name == ".zarray" and data.draw(st.booleans()):
            header = json.loads(content)
            header[data.draw(st.sampled_from(["shape", "chunks"]))] = data.draw(st.lists(EXTREME, max_size=9))
            file.write_text(json.dumps(header))
            continue
        if file.name == "checkpoint" and data.draw(st.booleans()):
            places = [match.start() for match in re.finditer(rb"\x93[\x90-\x94]", bytes(content))]  # arrays' shapes
            at = data.draw(st.sampled_from(places))
            axes = content[at + 1] & 0x0F
            shape = msgpack.packb(data.draw(st.lists(EXTREME, min_size=axes, max_size=axes)))
            content[at + 1 : at + 2 + axes] = shape
        elif data.draw(st.booleans()) and content:
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        for _ in range(data.draw(st.integers(0, 4))):
            if content:
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(content)
    with contextlib.suppress(PromptFormatError):
        assert np.isfinite(load_prompt(folder).encoder_tokens.embeddings).all()
    with contextlib.suppress(CheckpointError):
        params = prompt_jax.load_model(f"t5x:{folder}").params
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
