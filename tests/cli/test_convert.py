"""`prompt-jax export` and `import`."""

import numpy as np

from prompt_jax.prompt_files.io import read_prompt


def test_export_and_inspect(prompt_file, tiny_folder, tmp_path, run):
    assert run("export", prompt_file, tmp_path / "out.npy")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.load(prompt_file)["encoder_tokens"])
    assert run("export", prompt_file, tmp_path / "bare", "--format", "npy")[0] == 0
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "out.npy").read_bytes()
    status, out, err = run("inspect", prompt_file, "--model", tiny_folder, "--neighbors", 2)
    assert status == 0, err
    assert "soft_prompt" in out and "files" in out and "accuracy" in out


def test_a_file_of_one_prompt_cannot_hold_an_ensemble(ensemble_file, tmp_path, run):
    status, _, err = run("export", ensemble_file, tmp_path / "e.npy")
    assert status == 1 and "say which with --member, from 0 to 1" in err and not (tmp_path / "e.npy").exists()
    assert run("export", ensemble_file, tmp_path / "e.npy", "--member", 1)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), np.load(ensemble_file)["1/encoder_tokens"])


def test_import_records_the_base(prompt_file, tiny, tiny_folder, tmp_path, run):
    """A .npy does not name its base."""
    assert run("export", prompt_file, tmp_path / "p.npy")[0] == 0
    assert run("import", tmp_path / "p.npy", tmp_path / "q.npz", "--model", tiny_folder)[0] == 0
    prompt, metadata = read_prompt(tmp_path / "q.npz")
    np.testing.assert_array_equal(prompt.encoder_tokens.embeddings, np.load(prompt_file)["encoder_tokens"])
    assert metadata.base.fingerprint == tiny.fingerprint
    for words, message in (
        ((prompt_file, tmp_path / "x.npz", "--model", tiny_folder), f"{prompt_file} already names its base"),
        ((prompt_file, tmp_path / "x.npz", "--revision", "main"), "--revision needs --model"),
        ((prompt_file, tmp_path / "x.npy"), "DEST must end in .npz (export writes other formats)"),
    ):
        status, _, err = run("import", *words)
        assert status == 1 and message in err, err
    assert not list(tmp_path.glob("x.*"))
