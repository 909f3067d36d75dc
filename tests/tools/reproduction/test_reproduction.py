"""Tests of the papers' tables: valid commands, and a table from training to Markdown and plot."""

import concurrent.futures
import dataclasses
import json
import math
import os
import re
import shlex
import time
from pathlib import Path

import pytest

import tfds_records
from prompt_jax import cli
from prompt_jax import experiment as experiments
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.registry import discover_tasks, find_task, mixture_rates
from prompt_jax.errors import UserError
from prompt_jax.experiment import check
from prompt_jax.report.run_files import (
    BaseSummary,
    BestSummary,
    EnsembleSummary,
    MemberSummary,
    Summary,
    TaskScores,
    read_summary,
)
from tools.planner import parameters
from tools.reproduction import SMALL, TABLES, running
from tools.reproduction.__main__ import LENGTHS, PARAMETERS, main
from tools.reproduction.markdown import markdown, put
from tools.reproduction.plot import draw
from tools.reproduction.running import Runner, flags
from tools.reproduction.scores import evaluation_scores, supply, training_scores, vote_gain
from tools.reproduction.table import NOT_COMPUTED, Column, Evaluation, Row, Table, Templates, Training

ROOT = Path(__file__).resolve().parents[3]


def commands(name, model, folder, **options):
    """Yield the words of a table's commands, and whether this combination of options is new."""
    runner = Runner(folder, dry=True, **options)
    for row in TABLES[name](model).rows:
        assert not runner.scores(row)[1]
    seen = set()
    for command in runner.commands:
        _, *words = shlex.split(command)
        kind = (words[1], *(word for word in words if word.startswith("--")))
        yield words, kind not in seen
        seen.add(kind)


@pytest.mark.parametrize("model", [None, "demo"])
@pytest.mark.parametrize("name", TABLES)
def test_commands_are_valid_and_compute_the_metrics_of_all_columns(name, model, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)  # for configurations and tasks
    tasks = set(discover_tasks())
    table = TABLES[name](model)
    given, runs, chosen = set(), {}, {}
    for words, first in commands(name, model, tmp_path):
        verb = words[0]
        flag = "--data.task" if verb == "train" else "--task"
        own = [words[words.index(flag) + 1]] if flag in words else []
        if first:  # parsing the command line is slow
            args = cli.parse(verb, words[1:])
            if verb == "train":
                check(args.experiment)
                own = [args.experiment.data.task, *args.experiment.data.test_tasks]
                chosen |= dict.fromkeys(own, args.experiment.data.metrics)
        parts = {part for task in own for part in mixture_rates(task) or [task]}
        assert parts <= tasks
        given |= {part.removesuffix("_sentinel") for part in parts}
        if verb == "train":
            run = words[words.index("--name") + 1]
            assert runs.setdefault(run, words) == words, "two runs of one name"
    assert {column.task for column in table.columns} <= {None, *given}
    for column in table.columns:  # all are computed, except those that need further models
        if column.task is not None and column.metric not in NOT_COMPUTED and "meteor" not in column.metric:
            own = chosen.get(column.task) or find_task(column.task).task_format.metrics
            assert column.metric.removeprefix("rank/") in own, column
    titles = [column.title for column in table.columns]
    assert len(set(titles)) == len(titles)
    for row in table.rows:
        assert row.steps or row.paper, row.name
        assert set(row.paper) <= set(titles)
        assert (row.x is None) == (not table.x) or not row.steps, row.name
    assert len({row.name for row in table.rows}) == len(table.rows)


@pytest.mark.slow
def test_tables_share_equal_runs(tmp_path):
    runs = {}
    for model in (None, "demo"):
        for name in TABLES:
            for words, _ in commands(name, model, tmp_path):
                if words[0] == "train":
                    run = words.pop(words.index("--name") + 1)
                    assert runs.setdefault(run, words) == words, run
    again = {}
    for run, words in runs.items():
        assert again.setdefault(tuple(words), run) == run, "trained twice"
    # Two runs may also be equal because one repeats its configuration's values.
    trainings = {
        step.name: step
        for name in TABLES
        for row in TABLES[name](None).rows
        for step in row.steps
        if isinstance(step, Training)
    }
    result = {}
    for run, training in trainings.items():
        experiment = running._experiment(ROOT / training.config, training.options, quick=False)
        alike = experiments.to_json(dataclasses.replace(experiment, name=""))
        assert result.setdefault(alike, run) == run, "trained twice"


def table_experiments(name):
    """Yield the row name and experiment of each run of a paper's table."""
    for row in TABLES[name](None).rows:
        for step in row.steps:
            yield row.name, running._experiment(ROOT / step.config, step.options, quick=False)


def test_prefix_tuning_has_the_settings_of_the_authors_code():
    """GPT-2 uses dropout only in the baselines (`trainer_prefix.py`), BART always (`lightning_base.py`)."""
    for name in ("e2e", "webnlg", "dart"):
        for row, own in table_experiments(name):
            expected = (0.0, "sentence") if row.startswith("prefix") else (0.1, "token")
            assert (own.train.dropout_rate, own.train.loss) == expected, row
            assert own.decoding == Decoding(beams=5, banned_tokens=(198, 628))
    for name in ("xsum", "xsum-extrapolation"):
        for row, own in table_experiments(name):
            assert (own.train.dropout_rate, own.train.loss) == (0.1, "token"), row
            assert own.decoding == Decoding(
                6, early_stopping="true", length_penalty=0.8, min_new_tokens=10, no_repeat_ngram=3
            )


@pytest.mark.parametrize("name", ["low-data", "low-data-initialization"])
def test_low_data_runs_choose_the_lowest_validation_loss(name):
    """As in `trainer_prefix.py`, `save_based_on_eval`. Generated text is scored anyway."""
    for row, own in table_experiments(name):
        assert own.train.best_by == "first" and own.data.metrics[:3] == ("log_likelihood", "bleu", "nist"), row


def test_initialization_words():
    """GPT-2's tokens after a space, as in the prefix paper's code; for T5, one virtual token per word."""
    lengths = {row: own.prompt.length for row, own in table_experiments("low-data-initialization") if row != "random"}
    assert lengths.pop("table-to-text:") == 6 and set(lengths.values()) == {1} and len(lengths) == 7
    words = {own.data.task: own.prompt for _, own in table_experiments("prompt-length")}
    record, wsc = words["super_glue_record_v102"], words["super_glue_wsc_v102"]
    assert record.init == wsc.init == words["super_glue_boolq_v102"].init == "labels"
    assert record.init_labels == ("commonsense", "reasoning", "reading", "comprehension")
    assert wsc.init_labels == ("commonsense", "pronoun", "resolution")
    assert words["super_glue_boolq_v102"].init_labels == ()


@pytest.mark.parametrize("name", ["ensembles", "e2e", "xsum", "low-data"])
def test_quick_options_are_valid(name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for words, first in commands(name, None, tmp_path, quick=True):
        if words[0] == "train" and first:
            experiment = cli.parse("train", words[1:]).experiment
            check(experiment)
            assert experiment.name.startswith("quick-") and experiment.train.steps == 2


TABLE = Table(
    "Two tasks",
    "Somebody 2021, table 1.",
    (
        Column("average", None, ""),
        Column("A acc", "a", "accuracy"),
        Column("A F1", "a", "f1"),
        Column("B", "b", "nist"),
        Column("Mover", "b", "moverscore"),
    ),
    (
        Row("ours", (Training("x", "configs/demo.py"),), paper={"A acc": (90.0, 0.5), "B": 8.8}),
        Row("theirs", paper={"A acc": 71.8}),
        Row("broken", (Training("y", "configs/demo.py"),)),
    ),
)
OURS = {
    ("a", "test", "accuracy"): [0.5, 0.7],
    ("a", "test", "f1"): [0.3, 0.5],
    ("b", "test", "nist"): [6.0, 8.0],
}


def test_a_table_by_hand():
    no_average = dataclasses.replace(TABLE, columns=TABLE.columns[1:])
    text = markdown(no_average, [OURS, {}, {}], {"broken": ["no such file"]}, "plot.svg")
    # sample standard deviations: 0.2 / sqrt 2 and 2 / sqrt 2
    assert "| ours | 2 | 60.00 ± 14.14 | 90 ± 0.5 | 40.00 ± 14.14 | 7.00 ± 1.41 | 8.8 | not computed |" in text
    assert "| theirs |  |  | 71.8 |  |  |  |  |" in text
    assert "broken: no such file" in text and "![Two tasks](plot.svg)" in text
    # A benchmark's score: the mean of 40 and 60 for the first seed, and of 60 and 80 for the second.
    both = dataclasses.replace(TABLE, columns=TABLE.columns[:3])
    assert "| ours | 2 | 50.00 ± 14.14 | 60.00" in markdown(both, [OURS, {}, {}], {}, None)
    assert "| ours | 2 |  | 60.00" in markdown(TABLE, [OURS, {}, {}], {}, None), "an average of all, or none"
    # A diverged member is left out, and the other members' seeds stay aligned.
    nan = math.nan
    some = {("a", "test", "accuracy"): [nan, 0.7, 0.5], ("a", "test", "f1"): [0.3, 0.5, 0.3]}
    assert "| ours | 3 | 50.00 ± 14.14 | 60.00 ± 14.14 |" in markdown(both, [some, {}, {}], {}, None)


def test_plots(tmp_path):
    lines = dataclasses.replace(
        TABLE,
        columns=TABLE.columns[1:2],
        rows=tuple(dataclasses.replace(row, series="s", x=x) for row, x in zip(TABLE.rows, (1, 5, 150), strict=True)),
        x="tokens",
    )
    for table in (lines, dataclasses.replace(TABLE, columns=TABLE.columns[1:2])):
        assert draw(table, [OURS, {}, {}], tmp_path / "plot.svg")
        assert (tmp_path / "plot.svg").read_text().lstrip().startswith("<?xml")
    assert not draw(dataclasses.replace(TABLE, rows=TABLE.rows[2:]), [{}], tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_vote_gain():
    ensemble = EnsembleSummary(
        "majority", {"accuracy": 0.9}, {"accuracy": 0.85}, 1, 1.0, [], {"best": (-0.02, 0.03), "average": (0.01, 0.09)}
    )
    assert vote_gain("a", ensemble, {"accuracy": 0.89}) == (
        "a, accuracy: +5.00 (+1.00 to +9.00) over the average, +1.00 (-2.00 to +3.00) over the best"
    )
    bleu = dataclasses.replace(ensemble, vote={"nist": 0.9}, average={"nist": 0.85})
    assert "nist: +0.05 (+0.01 to +0.09) over the average" in vote_gain("a", bleu, {"nist": 0.89})


def test_prompt_design_uses_the_best_template_on_validation_data(tmp_path, monkeypatch):
    scores, asked = {"a {input}": 0.4, "b {input}": 0.7, "c {input}": 0.6}, []

    def make(words, *_):
        words = list(words)
        options = dict(zip(words[1::2], words[2::2], strict=True))
        asked.append((options["--design"], options.get("--split", "test"), options["--shots"]))
        actual = {"task": options["--task"], "split": asked[-1][1]}
        ways = [{"scores": {"rank/accuracy": scores[options["--design"]]}}]
        Path(options["--out"]).mkdir(parents=True)
        (Path(options["--out"]) / "scores.json").write_text(json.dumps(actual | {"ways": ways}))
        return 0

    monkeypatch.setattr(running, "_wait", make)
    search = Templates("t", {"task": "a"}, tuple(scores), "rank/accuracy")
    step = Evaluation("asked", {"task": "a", "shots": 3}, search=search)
    actual, wrong = Runner(tmp_path).scores(Row("r", (step,)))
    assert actual == {("a", "test", "rank/accuracy"): [0.7]} and not wrong
    assert asked == [*((design, "validation", "0") for design in scores), ("b {input}", "test", "3")]


def test_flags():
    options = {"ensemble.seed": (0, 1), "data.task_names": True, "prompt.tie_layers": False, "train.epochs": None}
    assert flags(options) == shlex.split(
        "--ensemble.seed 0 1 --data.task-names --prompt.no-tie-layers --train.epochs None"
    )


def test_a_call_waits_for_a_run_of_another_call(tmp_path, monkeypatch, capsys):
    result, made = tmp_path / "evaluations" / "x" / "scores.json", []

    def make(words, *_):
        made.append(words)
        time.sleep(0.5)
        result.parent.mkdir(parents=True)
        result.write_text("{}")
        return 0

    monkeypatch.setattr(running, "_wait", make)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        calls = [pool.submit(Runner(tmp_path)._run, ["evaluate"], result, "x", "") for _ in range(2)]
    assert [call.result() for call in calls] == [None, None] and made == [["evaluate"]]
    assert re.search(
        rf"waiting for (another process|process {os.getpid()} on .+), which runs x", capsys.readouterr().out
    )


def test_scores_of_members_best_and_vote():
    actual = {"task": "a", "split": "validation", "members": [{"scores": {"accuracy": v}} for v in (0.5, 0.7)]}
    actual["ensemble"] = {"vote": {"accuracy": 0.9}, "best": 1}
    key = ("a", "validation", "accuracy")
    own = {of: evaluation_scores(actual, Row("r", of=of))[key] for of in ("members", "best", "vote")}
    assert own == {"members": [0.5, 0.7], "best": [0.7], "vote": [0.9]}
    assert evaluation_scores(actual | {"ensemble": None, "members": actual["members"][:1]}, Row("r"))[key] == [0.5]


def test_a_row_selects_members_by_their_settings():
    """The second test of this run has only two of its members."""

    def member(init, seed, score, status="finished"):
        settings = {"prompt.init": init, "train.seed": seed}
        return MemberSummary(settings, "a", 5, status, 9, BestSummary("accuracy", score, 9), {"accuracy": score})

    members = [member("vocab", 0, 0.1), member("labels", 0, 0.2), member("vocab", 1, 0.3), member("labels", 1, 0.4)]
    scores = [{"accuracy": value} for value in (0.5, 0.6, 0.7, 0.8)]
    before = {"accuracy": 0.0}
    tests = [
        TaskScores("a", 7, True, [0, 1, 2, 3], before, scores, None),
        TaskScores("b", 7, False, [3, 0], before, [scores[3], scores[0]], None),
    ]
    base = BaseSummary("tiny", None, "sha256:0", 9)
    summary = Summary("r", base, 9, 9, 9, 1.0, {}, {}, {}, members, tests)
    a, b, validation = ("a", "test", "accuracy"), ("b", "test", "accuracy"), ("a", "validation", "accuracy")
    every = training_scores(summary, Row("r"))
    assert every[a] == [0.5, 0.6, 0.7, 0.8] and every[b] == [0.8, 0.5] and every[validation] == [0.1, 0.2, 0.3, 0.4]
    some = training_scores(summary, Row("r", where={"prompt.init": "labels"}))
    assert some == {a: [0.6, 0.8], b: [0.8], validation: [0.2, 0.4]}
    assert training_scores(summary, Row("r", of="best")) == {a: [0.8], b: [0.8]}
    members[3] = member("labels", 1, 0.4, "diverged")
    assert training_scores(summary, Row("r"))[a][:3] == [0.5, 0.6, 0.7] and math.isnan(
        training_scores(summary, Row("r"))[b][0]
    )
    mixed = {"mean": 0.3, "a/accuracy": 0.2, "b/f1": 0.4, "b/invalid": 0.0}
    of_mixture = dataclasses.replace(members[0], task="a_and_b", validation=mixed)
    scores = training_scores(dataclasses.replace(summary, members=[of_mixture], tests=[]), Row("r"))
    assert {key: value for key, value in scores.items() if key[0] in "ab"} == {
        ("a", "validation", "accuracy"): [0.2],
        ("b", "validation", "f1"): [0.4],
        ("b", "validation", "invalid"): [0.0],
    }


def test_a_table_replaces_the_text_between_its_marks():
    text = "# R\n<!-- a -->\nold\n<!-- /a -->\nend\n"
    assert put(text, "a", "new\n") == "# R\n<!-- a -->\nnew\n<!-- /a -->\nend\n"
    assert put(put(text, "a", "new\n"), "a", "new\n") == put(text, "a", "new\n")
    with pytest.raises(UserError, match="no place for the table: expected <!-- b -->"):
        put(text, "b", "new\n")


def test_supplied_figures():
    table = dataclasses.replace(TABLE, columns=TABLE.columns[1:])
    scores = [{**OURS}, {}, {}]
    supply(table, scores, {"ours": {"Mover": [0.5, 0.52], "A F1": [41, 43]}})
    assert "42.00 ± 1.41 | 7.00 ± 1.41 | 8.8 | 0.51 ± 0.01 |" in markdown(table, scores, {}, None)
    for wrong, said in (
        ({"nobody": {}}, "expected figures of a row, not of 'nobody'; rows are ours, theirs, broken"),
        ({"ours": {"C": [1]}}, "'C' is not the column of a metric; columns are A acc, "),
        ({"ours": {"B": ["1"]}}, r"'ours', 'B' must be a list of numbers, not \['1'\]"),
        ({"ours": {"B": [math.nan]}}, r"must be a list of numbers, not \[nan\]"),
        ([1], "expected {ROW: "),
    ):
        with pytest.raises(UserError, match=said):
            supply(table, scores, wrong)


def test_a_row_that_fails_is_one_line_and_the_others_are_made(monkeypatch, capsys, tmp_path):
    broken = dataclasses.replace(TABLE, rows=(*TABLE.rows[1:2], Row("broken", (Training("y", "configs/none.py"),))))
    monkeypatch.setitem(TABLES, "two", lambda model: broken)
    assert main(["two", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == f"reproduction: two, broken: no configuration file {ROOT / 'configs/none.py'}\n"
    assert "| theirs |  |  |  | 71.8 |" in (tmp_path / "two.md").read_text()
    assert main(["three"]) == 1
    assert "no table 'three'; known tables: superglue, " in capsys.readouterr().err


def test_an_incomplete_table_does_not_replace_an_existing_one(monkeypatch, capsys, tmp_path):
    broken = dataclasses.replace(TABLE, rows=(*TABLE.rows[1:2], Row("broken", (Training("y", "configs/none.py"),))))
    monkeypatch.setitem(TABLES, "two", lambda model: broken)
    results = tmp_path / "R.md"
    results.write_text("<!-- two -->\nthere\n<!-- /two -->\n")
    assert main(["two", "--out", str(tmp_path / "out"), "--into", str(results)]) == 1
    assert results.read_text() == "<!-- two -->\nthere\n<!-- /two -->\n"
    assert f"{results} keeps its table two, because not all rows of the new one could be run" in capsys.readouterr().err
    assert "| theirs |" in (tmp_path / "out" / "two.md").read_text()
    results.write_bytes(b"\xff")
    assert main(["two", "--into", str(results)]) == 1
    assert f"--into {results} is not UTF-8 text" in capsys.readouterr().err
    # A complete table replaces it, even if a member diverged.
    results.write_text("<!-- two -->\nthere\n<!-- /two -->\n")
    diverged = {("a", "test", "accuracy"): [0.5, math.nan]}
    monkeypatch.setattr(Runner, "_trained", lambda *_: diverged)
    assert main(["two", "--out", str(tmp_path / "out"), "--into", str(results)]) == 1
    assert "| broken | 1 |  | 50.00 |" in (text := results.read_text()) and "broken: 1 diverged and left out" in text
    with pytest.raises(SystemExit):
        main(["two", "--out", str(tmp_path / "new"), "--", "--bogus", "1"])
    assert "Unrecognized options: --bogus" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert main(["two", "--out", str(tmp_path / "new"), "--", "--name=x"]) == 1
    assert "--name is set for each run" in capsys.readouterr().err


def test_commands_have_data_paths_relative_to_where_they_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["e2e", "--model", "demo", "--dry-run", "--data-dir", "data"]) == 0
    assert f"PROMPT_JAX_DATA={tmp_path / 'data'} prompt-jax" in capsys.readouterr().out
    monkeypatch.chdir(ROOT)
    assert main(["e2e", "--model", "demo", "--dry-run", "--data-dir", "data"]) == 0
    assert "PROMPT_JAX_DATA=data prompt-jax" in capsys.readouterr().out


def test_a_reason_is_printed_once(tmp_path, monkeypatch):
    def fail(words, env, log, lock):
        log.write_text("prompt-jax: no such model\n")
        return 1

    monkeypatch.setattr(running, "_wait", fail)
    steps = tuple(Training(f"run-{seed}", "configs/demo.py", {"train.seed": seed}) for seed in range(3))
    _, wrong = Runner(tmp_path).scores(Row("r", steps))
    assert wrong == [f"no such model ({tmp_path / 'logs' / 'run-0.txt'} has the rest)"]


@pytest.mark.slow
def test_a_table_from_training_to_markdown(tiny_folder, tmp_path, monkeypatch, capsys):
    """Domain shift on synthetic questions: two methods, three seeds, seven tests.

    A second call reuses all results; a call with another configuration fails.
    """
    questions = [(f"is the film {number} good", f"a good film {number}") for number in range(6)]
    squad = [
        {"id": str(number), "title": "x", "context": context, "question": question}
        | {"answers": {"text": ["good", "great"][: 1 + number % 2], "answer_start": [0, 0][: 1 + number % 2]}}
        for number, (question, context) in enumerate(questions)
    ]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    tfds_records.write(tmp_path / "tfds", "squad/v1.1:3.0.0", {"train": squad[::2], "validation": squad})
    (tmp_path / "mrqa" / "dev").mkdir(parents=True)
    for name in MRQA:
        rows = [{"header": {"dataset": name}}]
        for number, (question, context) in enumerate(questions):
            asked = {"qid": f"{name}{number}", "question": question, "answers": ["good", "great"]}
            rows.append({"context": context, "qas": [asked]})
        (tmp_path / "mrqa" / "dev" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["domain-shift", "--model", str(tiny_folder), "--quick", "--data-dir", str(tmp_path)]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 0
    (path,) = (tmp_path / "out").glob("quick-domain-shift-model-*.md")
    first, text = capsys.readouterr(), path.read_text()
    assert first.out.count("prompt-jax train configs/squad.py --name quick-squad-") == 4 * 2 and not first.err
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| model tuning", "| prompt tuning"))]
    assert [row[1] for row in rows] == ["3", "3"] and all("±" in cell for row in rows for cell in row[2:])
    (folder,) = (tmp_path / "out" / "runs").glob("quick-squad-prompt-model-*")
    summary = read_summary(folder)
    scores = training_scores(summary, Row("r"))
    assert [len(scores[f"mrqa_{task}", "test", "squad_f1"]) for task in ("race", "drop")] == [3, 3]
    assert len(scores["squad_v010_allanswers", "validation", "squad_f1"]) == 3
    assert "Made with --quick" in text and "prompt-jax train configs/squad.py" in text
    assert path.with_suffix(".svg").exists()
    assert main(words) == 0
    again = capsys.readouterr()
    assert "$ prompt-jax" not in again.out and path.read_text() == text
    assert main([*words, "--", "--optimizer.weight-decay", "0.5"]) == 1
    assert "holds a run with another configuration (changed: optimizer.weight_decay)" in capsys.readouterr().err


MRQA = ("TextbookQA", "BioASQ", "RACE", "RelationExtraction", "DuoRC.ParaphraseRC", "DROP")


def test_results_md_matches_the_tables():
    """Each table of RESULTS.md has the rows, columns, commands and plot of its definition.

    The table of parameters, which needs no run, has the current counts.
    """
    text = (ROOT / "RESULTS.md").read_text()
    sections = dict(re.findall(r"<!-- ([a-z0-9-]+) -->\n(.*?)<!-- /\1 -->", text, re.DOTALL))
    assert set(sections) == {*SMALL, PARAMETERS}
    for name in SMALL:
        table, section = TABLES[name]("demo"), sections[name]
        runner = Runner(Path("reproduction"), data=Path("data"), dry=True)
        for row in table.rows:
            runner.scores(row)
        own = re.findall(r"^    (PROMPT_JAX_DATA.*)$", section, re.MULTILINE)
        assert [_of_any_search(command) for command in own] == [_of_any_search(command) for command in runner.commands]
        assert f"### {table.title}\n\n{table.source}\n" in section
        head, _, *rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
        assert head == ["n", *(column.title for column in table.columns)]
        assert [cells[0] for cells in rows] == [row.name for row in table.rows]
        assert (ROOT / "results" / f"{name}.svg").exists() == (f"(results/{name}.svg)" in section)
    counted = parameters.table(("demo",), LENGTHS)
    assert "\n".join(counted) in sections[PARAMETERS]


def _of_any_search(command):
    """Return a command without the learning rate or template that a search chose."""
    actual = r"--optimizer.learning-rate \S+" + ("" if "--split validation" in command else r"|--design '[^']+'")
    return re.sub(actual, "", command)
