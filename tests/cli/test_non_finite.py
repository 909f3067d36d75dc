"""A base with a weight that is NaN or infinite is an error in every verb."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import prompt_jax
from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_ensemble, save_prompt
from prompt_jax.prompt_files.io import ModelId
from prompt_jax.task_format import TaskFormat

FORMAT = TaskFormat("{text}", ("negative", "positive"), target_length=12)
# A weight of each family: its name in Hugging Face's files and its path here.
WEIGHTS = {
    "gpt2": ("h.1.mlp.c_proj.weight", "layers/0/mlp/down"),
    "bart": ("model.decoder.layers.0.fc2.weight", "decoder/layers/0/mlp/down"),
    "t5": ("decoder.block.0.layer.2.DenseReluDense.wo.weight", "decoder/layers/0/mlp/down"),
}


@pytest.fixture
def broken(tiny_folders, tmp_path):
    """Return a function that copies a family's base and changes one weight."""

    def make(family: str, value: float, name: str | None = None, place: int = 3):
        folder = tmp_path / f"{family}_{value}"
        shutil.copytree(tiny_folders[family], folder)
        tensors = load_file(folder / "model.safetensors")
        own = next(key for key in tensors if key.endswith(name or WEIGHTS[family][0].removeprefix("model.")))
        tensors[own].reshape(-1)[place] = value
        save_file({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, folder / "model.safetensors")
        return folder

    return make


@pytest.fixture
def prompts(tmp_path):
    """Return a function that makes a prompt and an ensemble of three for a base."""

    def make(folder):
        model = prompt_jax.load_model(str(folder))
        rng = np.random.default_rng(0)
        tokens = [rng.normal(size=(3, model.config.d_model)).astype(np.float32) for _ in range(3)]
        metadata = PromptMetadata(
            base=ModelId(model.name, model.revision, model.fingerprint), format=FORMAT, task="films"
        )
        each = [Prompt(VirtualTokens(own)) for own in tokens]
        save_prompt(tmp_path / "p.npz", each[0], metadata)
        save_ensemble(tmp_path / "e.npz", each, [metadata] * 3)
        return {"PROMPT": tmp_path / "p.npz", "ENSEMBLE": tmp_path / "e.npz", "MODEL": folder, "OUT": tmp_path / "out"}

    return make


@pytest.fixture
def asked(sentiment_files):
    return {"DATA": sentiment_files["test"], "TRAIN": sentiment_files["train"]}


DATA = ("--model", "MODEL", "--data", "DATA")
WAYS = {
    "answers and labels": ("evaluate", "PROMPT", *DATA, "--out", "OUT"),
    "votes": ("evaluate", "ENSEMBLE", *DATA, "--out", "OUT"),
    "mean probability": ("evaluate", "ENSEMBLE", *DATA, "--vote", "mean-probability"),
    "early stop": ("evaluate", "ENSEMBLE", *DATA, "--early-stop"),
    "beams": ("evaluate", "PROMPT", *DATA, "--decoding.beams", "3"),
    "sampling": ("evaluate", "PROMPT", *DATA, "--decoding.temperature", "1.0"),
    "the base alone": ("evaluate", *DATA, "--template", "{text}", "--labels", "negative", "positive"),
    "few-shot": (
        *("evaluate", *DATA, "--template", "{text}", "--labels", "negative", "positive"),
        *("--shots", "1", "--shots-from", "TRAIN"),
    ),
    "log-likelihood": ("evaluate", *DATA, "--template", "{text}", "--metrics", "log_likelihood", "--limit", "3"),
    "predict": ("predict", "PROMPT", "a good film", "--model", "MODEL"),
    "predict as JSON": ("predict", "ENSEMBLE", "a good film", "--model", "MODEL", "--json"),
    "predict with several": (
        *("predict", "--prompts", "x=PROMPT", "--model", "MODEL"),
        '{"prompt": "x", "text": "a good film"}',
    ),
    "inspect": ("inspect", "PROMPT", *DATA, "--limit", "2"),
}


@pytest.mark.filterwarnings("ignore:.* inputs have fewer than 1 examples before them")
@pytest.mark.parametrize(
    ("family", "value", "way"),
    [
        *(("t5", np.inf, way) for way in WAYS),
        *((family, np.nan, "answers and labels") for family in ("gpt2", "bart")),
        *(
            pytest.param(family, np.nan, way, marks=pytest.mark.slow)
            for family in ("gpt2", "bart")
            for way in WAYS
            if way != "answers and labels"
        ),
    ],
)
def test_every_way_of_asking_is_an_error(broken, prompts, asked, run, family, value, way):
    named = prompts(broken(family, value)) | asked
    if way == "predict with several":
        argv = ("predict", WAYS[way][-1], "--prompts", f"x={named['PROMPT']}", "--model", named["MODEL"])
    else:
        argv = [named.get(word, word) for word in WAYS[way]]
    status, out, err = run(*argv)
    assert status == 1 and not out and "Traceback" not in err, out + err
    assert f"{named['MODEL']}: the logits of " in err and " rows" in err and " are not finite: " in err
    assert f"the base has weights that are NaN or infinite, in {WEIGHTS[family][1]} (1 value); expected" in err
    assert not named["OUT"].exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "fp8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_in_every_dtype(broken, prompts, asked, run, dtype, value):
    """Quantized values cannot be NaN, but their scale can."""
    named = prompts(broken("t5", value)) | asked
    argv = [named.get(word, word) for word in WAYS["answers and labels"]]
    status, out, err = run(*argv, "--dtype", dtype, "--allow-other-base")
    assert status == 1 and not out and "weights that are NaN or infinite, in decoder/layers/0/mlp/down" in err, err


def test_a_token_that_no_text_has_counts_as_well(broken, prompts, asked, run):
    """Its logit is NaN, so all probabilities are."""
    named = prompts(broken("gpt2", np.nan, "wte.weight", place=-1)) | asked
    assert "not finite" in run(*[named.get(word, word) for word in WAYS["predict"]])[2]


def test_inspect_names_a_broken_embedding_table(broken, prompts, run):
    named = prompts(broken("t5", np.inf, "shared.weight", place=7 * 64 + 1))
    status, out, err = run("inspect", named["PROMPT"], "--model", named["MODEL"])
    assert status == 1 and not out and "embedding table has NaN or infinite values in 1 of" in err, err


def test_a_prompt_that_overflows_is_not_blamed_on_the_base(tiny_folders, prompts, sentiment_files, tmp_path, run):
    named = prompts(tiny_folders["gpt2"])
    sound, metadata = prompt_jax.prompt_files.io.read_prompt(named["PROMPT"])
    huge = Prompt(VirtualTokens(np.full(sound.encoder_tokens.embeddings.shape, 3e38, np.float32)))
    save_ensemble(tmp_path / "h.npz", [sound, huge, sound], [metadata] * 3)
    argv = ("evaluate", tmp_path / "h.npz", "--model", named["MODEL"], "--data", sentiment_files["test"])
    status, out, err = run(*argv)
    assert status == 1 and not out
    assert "the logits of 10 of 30 rows with prompt 1 are not finite: the base's weights are finite; expected" in err


def test_written_json_has_no_nan(prompts, tiny_folder, sentiment_files, tmp_path, run, monkeypatch):
    """A user's metric may be NaN."""
    from prompt_jax.metrics import task_metrics

    monkeypatch.setattr(task_metrics, "accuracy", lambda targets, predictions: {"accuracy": float("nan")})
    named = prompts(tiny_folder)
    argv = ("evaluate", named["ENSEMBLE"], "--model", tiny_folder, "--data", sentiment_files["test"])
    status, _, err = run(*argv, "--out", tmp_path / "out")
    assert status == 0, err

    def refuse(name):
        raise AssertionError(name)

    scores = json.loads((tmp_path / "out" / "scores.json").read_text(), parse_constant=refuse)
    assert scores["ensemble"]["vote"]["accuracy"] is None
    for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
