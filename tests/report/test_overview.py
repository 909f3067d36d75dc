"""Score cards, tables and shades of a report, by hand."""

import pytest

from prompt_jax.report.overview import (
    Card,
    answer_source,
    best_member,
    deviation,
    score_cards,
    score_shades,
    task_tables,
    training_curves,
    varied_settings,
)
from prompt_jax.report.run_files import read_summary
from run_folders import ENSEMBLE, SINGLE, a_member, a_run, a_test, log_lines, write_run


@pytest.fixture
def summary_of(tmp_path):
    """Return a function that writes a run's summary and reads it."""
    return lambda run: read_summary(write_run(tmp_path, run, logs=False))


def test_an_ensemble(summary_of):
    """Members score 0.70, 0.71 and 0.72 on the test, and their vote 0.80."""
    summary = summary_of(ENSEMBLE)
    assert varied_settings(summary) == ["train.seed"] and best_member(summary) == 2
    assert score_shades(summary) == pytest.approx([0, 0.5, 1])
    (test,) = summary.tests
    assert deviation(test, "accuracy") == pytest.approx(0.01) and answer_source(test) == "majority vote of 3 members"
    first, average, best, *_ = score_cards(summary)
    assert first == Card("Test accuracy", "12.5%", "80.0%", "majority vote of 3 members", gain=True)
    assert (average.after, best.after, best.note) == ("71.0%", "72.0%", "member 2, the best on this test")
    assert score_cards(summary)[-1].note == "member 2, at step 25, the best"


def test_a_single_prompt(summary_of):
    summary = summary_of(SINGLE)
    notes = [card.note for card in score_cards(summary)]
    assert notes[0] == notes[2] == "of generated answers" and notes[3] == "at step 25, the best"
    assert notes[1] == "the most probable label as the answer"
    assert score_shades(summary) == [0] and deviation(summary.tests[0], "accuracy") is None
    assert task_tables(summary.tests) == []


def test_members_of_different_tasks_have_no_best(summary_of):
    tests = [a_test("movie", [0]), a_test("book", [1])]
    summary = summary_of(a_run([a_member(0), a_member(1, task="book")], tests))
    assert best_member(summary) == 0 and score_shades(summary) == [0, 0]
    mean, *_ = score_cards(summary)
    assert (mean.name, mean.before, mean.after) == ("2 tasks", "12.5%", "70.5%")
    assert [(table.metric, len(table.tests)) for table in task_tables(summary.tests)] == [
        ("accuracy", 2),
        ("rank/accuracy", 2),
    ]


def test_curves_of_what_was_logged(summary_of):
    summary = summary_of(ENSEMBLE)
    lines = [[line for line in log_lines(3) if line["member"] == member] for member in range(3)]
    assert len(training_curves(lines, summary)) == 2
    losses_alone = [[line for line in own if "train/loss" in line] for own in lines]
    assert len(training_curves(losses_alone, summary)) == 1 and training_curves([[], [], []], summary) == []
