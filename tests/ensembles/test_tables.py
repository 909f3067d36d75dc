"""Tables of an ensemble's scores."""

from known_answers import LABELS
from prompt_jax.ensembles.evaluation import combine
from prompt_jax.ensembles.tables import ensemble_tables


def test_tables(labeled):
    examples, members = labeled
    printed = ensemble_tables(combine(members, examples), "title", ["seed 1", "", "a|b\n*c*"], LABELS, [4, 7, 9])
    text = [line.split() for line in printed[0].text().splitlines()]
    assert text[1] == ["accuracy", "invalid", "rank/accuracy"]
    assert text[2] == ["member", "4", "(seed", "1)", "0.5000", "0.0000", "0.5000"]
    assert text[3] == ["member", "7", "0.5000", "0.0000", "0.7500"]
    assert [row[0] for row in text[5:]] == ["average", "best", "vote"] and text[6][:3] == ["best", "(member", "4)"]
    lines = printed[0].markdown().splitlines()
    assert lines[0] == "## title" and lines[3] == "| --- | ---: | ---: | ---: |"
    assert r"a\|b \*c\*" in lines[6] and all(line.replace(r"\|", "").count("|") == 5 for line in lines[2:])
    by_mean = ensemble_tables(combine(members, examples, "mean-probability"), "title", ["", "", ""], LABELS)
    assert by_mean[0].rows[-1] == ["vote", "-", "-", "0.7500"]
    assert printed[-1].rows == [["", "no", "yes", "other"], ["no", "1", "1", "0"], ["yes", "1", "1", "0"]]
