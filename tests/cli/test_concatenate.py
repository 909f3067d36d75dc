"""`prompt-jax concatenate`."""

import dataclasses

import numpy as np

from prompt_jax import concatenate_prompts, save_prompt
from prompt_jax.prompt_files.io import read_prompt, read_prompts


def test_prompts_follow_one_another(prompt_file, ensemble_file, said, tmp_path, run):
    status, out, err = run("concatenate", prompt_file, ensemble_file, tmp_path / "both.npz")
    prompts = [prompt for path in (prompt_file, ensemble_file) for prompt, _ in read_prompts(path)]
    made, metadata = read_prompt(tmp_path / "both.npz")
    expected = np.concatenate([prompt.encoder_tokens.embeddings for prompt in prompts])
    np.testing.assert_array_equal(made.encoder_tokens.embeddings, expected)
    assert status == 0 and f"3 prompts with {len(expected)} slots in all" in out, err
    assert metadata.task == said.task and len(metadata.settings["concatenate.of"]) == 3
    again = concatenate_prompts(prompts[:1])
    np.testing.assert_array_equal(again.encoder_tokens.embeddings, prompts[0].encoder_tokens.embeddings)


def test_the_frozen_tokens_are_those_of_the_first(prompt_file, said, tmp_path, run):
    prompt, _ = read_prompt(prompt_file)
    for name, frozen in (("a", 2), ("b", 1)):
        save_prompt(tmp_path / f"{name}.npz", prompt, dataclasses.replace(said, frozen_tokens=frozen))
    assert run("concatenate", tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.npz")[0] == 0
    assert read_prompt(tmp_path / "c.npz")[1].frozen_tokens == 2


def test_files_that_do_not_fit_are_refused(prompt_file, ensemble_file, tmp_path, run):
    status, _, err = run("concatenate", prompt_file, tmp_path / "c.npy")
    assert status == 1 and "DEST must end in .npz" in err
    status, _, err = run("concatenate", ensemble_file, prompt_file)
    assert status == 1 and f"{prompt_file} exists already" in err
