"""`report.html` while a run trains."""

from experiments import with_options
from prompt_jax.training import loop, reporting


def test_the_page_is_written_at_the_first_evaluation_and_updated(experiment, monkeypatch):
    """It names the step, and that members are training. At the end `finish` replaces it."""
    monkeypatch.setattr(reporting, "SECONDS", 0)
    pages, real = [], reporting.write_report
    monkeypatch.setattr(reporting, "write_report", lambda *a, **o: pages.append(real(*a, **o).read_text()))
    loop.train(with_options(experiment, "train", steps=6, eval_every=3))
    assert [f"step {step} of 6" in page for step, page in zip((0, 3, 6), pages, strict=True)] == [True] * 3
    assert "Validation accuracy" in pages[1] and "finished" not in pages[2]
    assert not (experiment.folder / "summary.json").exists()
