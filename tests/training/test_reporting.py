"""`report.html` while a run trains."""

import json

import pytest

from experiments import with_options
from prompt_jax.report.metrics_log import read_log
from prompt_jax.report.run_files import read_summary
from prompt_jax.training import loop, reporting
from prompt_jax.training.summary import finish


def test_the_page_is_written_at_the_first_evaluation_and_updated(experiment, monkeypatch):
    """It names the step, and that members are training. At the end `finish` replaces it."""
    monkeypatch.setattr(reporting, "SECONDS", 0)
    pages, real = [], reporting.write_report
    monkeypatch.setattr(reporting, "write_report", lambda *a, **o: pages.append(real(*a, **o).read_text()))
    loop.train(with_options(experiment, "train", steps=6, eval_every=3))
    assert [f"step {step} of 6" in page for step, page in zip((0, 3, 6), pages, strict=True)] == [True] * 3
    assert "Validation accuracy" in pages[1] and "finished" not in pages[2]
    assert not (experiment.folder / "summary.json").exists()


def test_times_and_counts_in_the_summary(experiment):
    """Those of a resumed run add up. The examples' tokens are counted without padding."""
    finish(experiment, *loop.train(with_options(experiment, "train", steps=3)))
    setup, progress = loop.train(experiment)
    finish(experiment, setup, progress)
    summary = read_summary(experiment.folder)
    assert summary.sessions == 2 and progress.examples == 6 * 8
    setup.batches.seek({"streams": [{"epoch": 0, "batch": 0}]})
    batches = [next(setup.batches)[0].read() for _ in range(6)]
    assert progress.tokens == sum(b["inputs_mask"].sum() + b["target_mask"].sum() for b in batches)
    times, speed = summary.times, summary.throughput
    assert min(times.compile, times.train, times.validation, times.test) > 0
    assert times.compile + times.train + times.validation == pytest.approx(summary.seconds)
    assert speed.examples == pytest.approx(48 / times.train)
    assert speed.tokens == pytest.approx(progress.tokens / times.train)
    assert summary.environment.device == "cpu"
    logged = {
        line["step"]: line["validation/loss"] for line in read_log(experiment.folder) if "validation/loss" in line
    }
    assert list(logged) == [0, 3, 6] and 0 < logged[summary.members[0].best.step] == summary.members[0].validation_loss
    labels = {each.label: each for each in summary.tests[0].labels}
    assert list(labels) == ["negative", "positive"] and [each.examples for each in labels.values()] == [5, 5]


def test_a_run_that_began_with_an_earlier_version(experiment, monkeypatch):
    """Its checkpoint has no times, so the summary has none."""
    real = loop.restore

    def restore(*arguments):
        if restored := real(*arguments):
            restored[0].sessions = 0
        return restored

    loop.train(with_options(experiment, "train", steps=3))
    monkeypatch.setattr(loop, "restore", restore)
    finish(experiment, *loop.train(experiment))
    summary = read_summary(experiment.folder)
    assert summary.sessions is summary.times is summary.throughput is None and summary.seconds > 0
    values = json.loads((experiment.folder / "summary.json").read_text())
    for name in ("sessions", "times", "throughput", "environment"):
        del values[name]
    del values["tests"][0]["labels"]
    (experiment.folder / "summary.json").write_text(json.dumps(values))
    assert read_summary(experiment.folder).environment is None
