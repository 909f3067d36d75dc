"""`prompt-jax average`."""

import dataclasses

import numpy as np
import pytest

from prompt_jax import Prompt, VirtualTokens, load_prompt, save_prompt
from prompt_jax.prompt_files.io import ModelId, read_prompt, read_prompts


def tokens_of(path) -> list[np.ndarray]:
    return [np.asarray(prompt.encoder_tokens.embeddings) for prompt, _ in read_prompts(path)]


def test_mean_of_files_and_members(prompt_file, ensemble_file, tmp_path, run):
    status, out, err = run("average", prompt_file, ensemble_file, tmp_path / "a.npz")
    assert status == 0 and "the average of 3 prompts" in out, err
    every = np.stack([*tokens_of(prompt_file), *tokens_of(ensemble_file)])
    np.testing.assert_allclose(load_prompt(tmp_path / "a.npz").encoder_tokens.embeddings, every.mean(axis=0), rtol=1e-6)
    _, metadata = read_prompt(tmp_path / "a.npz")
    _, own = read_prompt(prompt_file)
    for name in ("base", "task", "format", "method"):
        assert getattr(metadata, name) == getattr(own, name)
    assert metadata.scores == {} and metadata.step is None and metadata.initialization is None
    folder = tmp_path.name
    made_of = ["p.npz", "e.npz, member 0", "e.npz, member 1"]
    assert metadata.settings == {"average.of": [f"{folder}/{name}" for name in made_of]}


def test_weights_interpolate_and_go_beyond(ensemble_file, tmp_path, run):
    a, b = (own.astype(np.float64) for own in tokens_of(ensemble_file))
    for number, weights in enumerate(((1, 0), (0.25, 0.75), (1.5, -0.5))):
        dest = tmp_path / f"w{number}.npz"
        status, _, err = run("average", ensemble_file, dest, "--weights", *weights)
        assert status == 0, err
        actual = tokens_of(dest)[0]
        expected = weights[0] * a + weights[1] * b
        np.testing.assert_array_equal(actual, expected.astype(np.float32))
        assert read_prompt(dest)[1].settings["average.weights"] == list(weights)


def test_metadata_that_members_do_not_share_is_left_out(prompt_file, said, tmp_path, run):
    prompt, _ = read_prompt(prompt_file)
    save_prompt(tmp_path / "q.npz", prompt, dataclasses.replace(said, base=None, task="movies"))
    assert run("average", tmp_path / "q.npz", prompt_file, tmp_path / "a.npz")[0] == 0
    _, metadata = read_prompt(tmp_path / "a.npz")
    assert metadata.task is None and metadata.format == said.format and metadata.base == said.base
    np.testing.assert_array_equal(tokens_of(tmp_path / "a.npz"), tokens_of(prompt_file))


def test_an_existing_file_is_not_overwritten(prompt_file, ensemble_file, run):
    """A user who forgets DEST names the last prompt in its place."""
    before = prompt_file.read_bytes()
    status, _, err = run("average", ensemble_file, prompt_file)
    assert status == 1 and f"{prompt_file} exists already; the last file is the one to write" in err
    assert prompt_file.read_bytes() == before
    assert run("average", ensemble_file, prompt_file, "--overwrite")[0] == 0 and prompt_file.read_bytes() != before


def test_errors_name_the_problem(prompt_file, ensemble_file, said, tmp_path, run):
    def other(name: str, tokens: np.ndarray, **changes):
        save_prompt(tmp_path / name, Prompt(VirtualTokens(tokens)), dataclasses.replace(said, **changes))
        return tmp_path / name

    longer = other("l.npz", np.ones((4, 64), np.float32))
    wider = other("w.npz", np.ones((3, 65), np.float32))
    stranger = other("s.npz", np.ones((3, 64), np.float32), base=ModelId("elsewhere", None, "sha256:1"))
    for argv, message in (
        ((prompt_file,), "an average needs two or more prompts, and there is 1"),
        ((ensemble_file, "--weights", 0.5, 0.6), "the weights 0.5, 0.6 add up to 1.1; expected 1"),
        ((ensemble_file, "--weights", "nan", 0.6), "add up to nan"),
        ((ensemble_file, "--weights", 1), "1 weights for 2 prompts"),
        ((prompt_file, longer), f"{prompt_file} has 3 slots of encoder_tokens, and {longer} 4"),
        ((prompt_file, wider), "of width 64 and"),
        ((prompt_file, stranger), f"{stranger} on elsewhere"),
        ((prompt_file, prompt_file), "is named twice"),
    ):
        split = argv.index("--weights") if "--weights" in argv else len(argv)
        status, _, err = run("average", *argv[:split], tmp_path / "a.npz", *argv[split:])
        assert status == 1 and message in err, (argv, err)
    status, _, err = run("average", ensemble_file, tmp_path / "a.npy")
    assert status == 1 and "a.npy: DEST must end in .npz" in err
    assert not (tmp_path / "a.npz").exists() and not (tmp_path / "a.npy").exists()


@pytest.mark.parametrize("mask", [None, np.array([False, True, True, True])])
def test_prefixes(tiny, said, tmp_path, run, mask):
    from adapters import random_prefix

    slots = 3 if mask is None else 4
    prompts = [random_prefix(tiny, 3, seed=0), random_prefix(tiny, slots, seed=1)]
    parts = {name: dataclasses.replace(part, mask=mask) for name, part in prompts[1].parts.items()}
    for name, prompt in (("a", prompts[0]), ("b", Prompt(**parts))):
        save_prompt(tmp_path / f"{name}.npz", prompt, said)
    assert run("average", tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "m.npz")[0] == 0
    actual = load_prompt(tmp_path / "m.npz")
    for name, part in prompts[0].parts.items():
        expected = (part.values + parts[name].values[:, slots - 3 :]) / 2
        np.testing.assert_allclose(actual.parts[name].values, expected, rtol=1e-6, atol=1e-6)
        assert actual.parts[name].mask is None
