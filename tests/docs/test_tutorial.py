"""The notebook docs/tutorial.ipynb runs from start to end, with the tiny model and a few steps."""

import json

import matplotlib
import pytest

from doc_blocks import ROOT

OPTIONS = """
    --train.steps 4 --train.batch-size 4 --train.log-every 1 --train.eval-every 2 --train.checkpoint-every 4
    --train.eval-examples 4 --train.test-examples 4 --data.buckets 1 --data.input-length 32 --data.target-length 12
    --prompt.length 4 --prompt.init-vocab 200
"""


@pytest.fixture
def cells():
    """The source of the notebook's code cells, and the number of the cell with the parameters."""
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (parameters,) = (i for i, cell in enumerate(code) if cell["metadata"].get("tags") == ["parameters"])
    return ["".join(cell["source"]) for cell in code], parameters


@pytest.mark.slow
def test_the_notebook_runs(cells, tiny_folder, tmp_path, monkeypatch, capsys):
    for name in ("configs", "tasks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(matplotlib.rcParams, "backend", "agg")
    namespace: dict = {"__name__": "tutorial"}
    sources, parameters = cells
    for number, source in enumerate(sources):
        source = source.replace('"--limit", "200"', '"--limit", "4"')
        lines = source.splitlines()
        if lines[-1].startswith("cli.main("):  # a notebook shows the value of the last line
            lines[-1] = f"assert {lines[-1]} == 0"
        exec(compile("\n".join(lines), f"cell {number}", "exec"), namespace)
        if number == parameters:
            namespace |= {"MODEL": str(tiny_folder), "OPTIONS": OPTIONS.split()}
    shown = capsys.readouterr().out
    assert "majority vote" in shown and "\nvote     0." in shown and (tmp_path / "runs/demo/member.npz").exists()
