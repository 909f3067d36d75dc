"""E2E, WebNLG, DART and XSum from small folders in the layout of each release, written by hand."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from prompt_jax import metrics
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import discover_tasks, task_names
from prompt_jax.errors import DataError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
E2E = SHARED / "e2e"
needs_meteor = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="needs Java and the extra meteor",
)


@pytest.fixture(scope="module")
def modules():
    """Return the four task files, registered."""
    paths = {name: ROOT / "tasks" / f"{name}.py" for name in ("e2e", "webnlg", "dart", "xsum")}
    for path in paths.values():
        discover_tasks(path)
    loaded = {getattr(module, "__file__", None): module for module in list(sys.modules.values())}
    return {name: loaded[str(path)] for name, path in paths.items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pairs(name, split, tokenizer):
    """(input, target) for each row of training, (input, references) for each example of other splits."""
    examples = load_examples(name, tokenizer, split, LoadOptions(512, 512))
    return list(zip(examples.input_texts, examples.references or examples.target_texts, strict=True))


@pytest.mark.parametrize(
    "name", ["e2e", "webnlg", "webnlg_seen", "webnlg_unseen", "dart", "xsum", "xsum_news_to_sports", "xsum_within_news"]
)
def test_a_missing_folder_is_an_error_when_the_task_is_loaded(modules, name, tokenizer, tmp_path, monkeypatch):
    monkeypatch.delenv("PROMPT_JAX_DATA", raising=False)
    assert name in task_names()
    with pytest.raises(DataError, match=rf"set PROMPT_JAX_DATA to a folder with .* in {name.split('_')[0]}/"):
        pairs(name, "test", tokenizer)
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    (tmp_path / name.split("_")[0]).mkdir()
    with pytest.raises(DataError, match="no such file|cannot be read"):
        pairs(name, "test", tokenizer)


# ---- E2E


def test_e2e(modules, folder, tokenizer):
    table = '"name[Blue Spice], eatType[coffee shop], priceRange[£20-25], familyFriendly[no], near[Café Sicilia]"'
    rows = ["mr,ref", f'{table},"It\'s cheap, near Café Sicilia."', f"{table},Cheap"]
    for name in ("trainset", "devset", "testset_w_refs"):
        write(folder / "e2e" / f"{name}.csv", "\n".join([*rows, ""]))
    source = "name : Blue Spice | Type : coffee shop | price : £ 20 - 25 | family friendly : no | near : Café Sicilia"
    text = "It 's cheap , near Café Sicilia ."
    assert pairs("e2e", "train", tokenizer) == [(source, text), (source, "Cheap")]
    assert pairs("e2e", "test", tokenizer) == [(source, (text, "Cheap"))]


def test_e2es_contractions_equal_the_papers(modules, folder, tokenizer):
    """The validation file has `isn 't` and the test file `is n't`."""
    rows = ["mr,ref", "name[A],\"It isn't far, I can't say; don't. It's Ann 'til\"", "name[B],You won’t"]
    for name in ("devset", "testset_w_refs"):
        write(folder / "e2e" / f"{name}.csv", "\n".join([*rows, ""]))
    texts = {split: [own for _, (own,) in pairs("e2e", split, tokenizer)] for split in ("validation", "test")}
    assert texts == {
        "validation": ["It isn 't far , I can 't say ; don 't . It 's Ann ' til", "You won ’t"],
        "test": ["It is n't far , I ca n't say ; do n't . It 's Ann ' til", "You wo n’t"],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # as in the paper's data
        ("that is not family-friendly.", "that is not family - friendly ."),
        ("It is not family -friendly, however", "It is not family -friendly , however"),
        ("price range £20-25 isn't it's", "price range £ 20 - 25 isn 't it 's"),
        ("from £30.99, near 'The Bakers'", "from £ 30.99 , near ' The Bakers '"),
        ("The Wrestlers' is cheap eats - just", "The Wrestlers ' is cheap eats - just"),
        ("in the center. of town", "in the center . of town"),
        ("not family-friendly.. It provides 3,000", "not family - friendly .. It provides 3,000"),
    ],
)
def test_e2es_tokens(modules, text, expected):
    assert modules["e2e"].tokenize(text) == expected


@pytest.mark.parametrize("table", ["", "name", "name[a] food[b]", "name[a], food", "name[a]]"])
def test_broken_tables_are_named_with_their_line(modules, folder, tokenizer, table):
    write(folder / "e2e" / "devset.csv", f'mr,ref\nname[a],b\n"{table}",c\n')
    with pytest.raises(DataError, match=r"devset.csv:3: the table .*; expected key\[value\]"):
        pairs("e2e", "validation", tokenizer)


def test_all_of_e2e_is_read(modules, monkeypatch):
    if not E2E.is_dir():
        pytest.skip("needs E2E's files in ../shared/data/e2e")
    monkeypatch.setenv("PROMPT_JAX_DATA", str(E2E.parent))
    rows = {split: list(modules["e2e"].examples(split)) for split in ("train", "validation", "test")}
    assert {split: len(own) for split, own in rows.items()} == {"train": 42061, "validation": 4672, "test": 4693}
    tables = {split: {source for source, _ in own} for split, own in rows.items()}
    assert len(tables["validation"]) == 547 and len(tables["test"]) == 630
    keys = {field.split(" : ")[0] for source in tables["train"] for field in source.split(" | ")}
    assert keys == {"name", "Type", "food", "price", "customer rating", "area", "family friendly", "near"}
    first = rows["validation"][0]
    assert first == (
        "name : Alimentum | area : city centre | family friendly : no",
        "There is a place in the city centre , Alimentum , that is not family - friendly .",
    )


# ---- WebNLG


def benchmark(*entries: str) -> str:
    return f"<benchmark><entries>{''.join(entries)}</entries></benchmark>"


def entry(category: str, triples: list[str], **texts: str) -> str:
    lexes = "".join(f'<lex comment="{comment}" lid="Id1">{text}</lex>' for comment, text in texts.items())
    modified = "".join(f"<mtriple>{triple}</mtriple>" for triple in triples)
    original = "<originaltripleset><otriple>x | y | z</otriple></originaltripleset>"
    return (
        f'<entry category="{category}" eid="Id1" size="{len(triples)}">{original}'
        f"<modifiedtripleset>{modified}</modifiedtripleset>{lexes}</entry>"
    )


def test_webnlg(modules, folder, tokenizer):
    one, two = "Aarhus_Airport | cityServed | &quot;Aarhus, Denmark&quot;", "Aarhus | leaderName | Jacob | Bundsgaard"
    write(
        folder / "webnlg/train/1triples/a.xml", benchmark(entry("Airport", [one], good="Aarhus has it.", toFix="Bad"))
    )
    write(folder / "webnlg/train/2triples/b.xml", benchmark(entry("City", [two, one], good="A leader\n  leads.")))
    write(folder / "webnlg/dev/1triples/a.xml", benchmark(entry("Airport", [one], good="One.", toFix="Two.")))
    unseen = entry("Artist", ["A_b | c | d"], good="Art.", other="Arts.")
    write(folder / "webnlg/test/testdata_with_lex.xml", benchmark(entry("Airport", [one], good="One."), unseen))
    write(folder / "webnlg/test/testdata_no_lex.xml", "not read")

    first = ' | Aarhus_Airport : cityServed : "Aarhus, Denmark"'
    assert pairs("webnlg", "train", tokenizer) == [
        (first, "Aarhus has it."),
        (f" | Aarhus : leaderName : Jacob | Bundsgaard{first}", "A leader leads."),
    ]
    assert pairs("webnlg", "validation", tokenizer) == [(first, ("One.", "Two."))]
    seen, others = [(first, ("One.",))], [(" | A_b : c : d", ("Art.", "Arts."))]
    assert pairs("webnlg", "test", tokenizer) == seen + others
    assert pairs("webnlg_seen", "test", tokenizer) == seen
    assert pairs("webnlg_unseen", "test", tokenizer) == others


# What the official scripts give for the first text of each entry with several, with the others as references:
# DART's and WebNLG's `multi-bleu.perl`, and METEOR 1.5 with `-l en -norm -r 3`, on files that they normalized.
@pytest.mark.parametrize(
    ("path", "split", "metric", "official"),
    [
        ("webnlg/test/testdata_with_lex.xml", "test", "webnlg_bleu", 0.4803),
        pytest.param(
            *("webnlg/test/testdata_with_lex.xml", "test", "webnlg_meteor", 0.41915),
            marks=[needs_meteor, pytest.mark.slow],
        ),
        ("dart/dart-v1.1.1-full-dev.json", "validation", "dart_bleu", 0.4966),
        ("dart/dart-v1.1.1-full-test.json", "test", "dart_bleu", 0.5009),
    ],
)
def test_official_scores_of_human_texts(modules, monkeypatch, tokenizer, path, split, metric, official):
    if not (SHARED / path).is_file():
        pytest.skip(f"needs ../shared/data/{path}")
    monkeypatch.setenv("PROMPT_JAX_DATA", str(SHARED))
    texts = [own for _, own in pairs(path.partition("/")[0], split, tokenizer) if len(own) > 1]
    score = metrics.corpus_score([own[1:] for own in texts], [own[0] for own in texts], name=metric)[metric]
    assert score == pytest.approx(official, abs=5e-5)


def test_broken_xml_is_named(modules, folder, tokenizer):
    write(folder / "webnlg/test/testdata_with_lex.xml", "<benchmark>")
    with pytest.raises(DataError, match=r"testdata_with_lex.xml: broken XML"):
        pairs("webnlg", "test", tokenizer)


# ---- DART

DART = [
    {
        "tripleset": [["Mars Hill College", "JOINED", "1973"], ["Mars Hill", "IS_In", "Asheville"]],
        "subtree_was_extended": False,
        "annotations": [{"source": "x", "text": "It joined."}, {"source": "y", "text": "Joined in 1973."}],
    },
    {"tripleset": [["Ä", "ÄÖ", "Ü"]], "annotations": [{"source": "x", "text": "Umlauts."}]},
]
DART_SOURCES = ("Mars Hill College : joined : 1973 | Mars Hill : is_in : Asheville", "Ä : äö : Ü")


def test_dart(modules, folder, tokenizer):
    for name in ("train", "dev", "test"):
        write(folder / f"dart/dart-v1.1.1-full-{name}.json", json.dumps(DART))
    first, second = DART_SOURCES
    assert pairs("dart", "train", tokenizer) == [
        (first, "It joined."),
        (first, "Joined in 1973."),
        (second, "Umlauts."),
    ]
    assert pairs("dart", "test", tokenizer) == [(first, ("It joined.", "Joined in 1973.")), (second, ("Umlauts.",))]
    # Two entries with the same triples are scored apart, each with its own references.
    twice = [*DART, {**DART[1], "annotations": [{"source": "x", "text": "Ä, ÄÖ, Ü."}]}]
    write(folder / "dart/dart-v1.1.1-full-test.json", json.dumps(twice))
    assert pairs("dart", "test", tokenizer)[1:] == [(second, ("Umlauts.",)), (second, ("Ä, ÄÖ, Ü.",))]
    examples = load_examples("dart", tokenizer, "test", LoadOptions(512, 512))
    assert examples.score(["it joined .", "UMLAUTS.", "ä , äö , ü ."])["dart_bleu"] == pytest.approx(1.0)
    write(folder / "dart/dart-v1.1.1-full-test.json", '[{"tripleset": []}]')
    with pytest.raises(DataError, match=r"full-test.json: not DART's JSON \(KeyError: 'annotations'\)"):
        pairs("dart", "test", tokenizer)


def test_tfdss_rows_of_dart_become_the_same(modules):
    import tensorflow as tf

    def rows():
        for entry in DART:
            content = [part for triple in entry["tripleset"] for part in triple]
            for annotation in entry["annotations"]:
                yield {"input_text": {"table": {"content": content}}, "target_text": annotation["text"]}

    text = tf.TensorSpec((), tf.string)
    signature = {"input_text": {"table": {"content": tf.TensorSpec((None,), tf.string)}}, "target_text": text}
    dataset = modules["dart"].from_table(tf.data.Dataset.from_generator(rows, output_signature=signature))
    actual = [(row["source"].decode(), row["target"].decode()) for row in dataset.as_numpy_iterator()]
    first, second = DART_SOURCES
    assert actual == [(first, "It joined."), (first, "Joined in 1973."), (second, "Umlauts.")]


# ---- XSum

ARTICLES = {
    "1": "http://web.archive.org/web/2015/http://www.bbc.co.uk/news/world-europe-34872345",
    "2": "http://www.bbc.co.uk/news/uk-england-leeds-1",
    "3": "http://www.bbc.com/news/business-2",
    "4": "http://www.bbc.co.uk/news/health-3",
    "5": "http://www.bbc.co.uk/sport/0/football/4",
    "6": "http://www.bbc.co.uk/sport/tennis/5",
    "7": "http://www.bbc.co.uk/newsbeat/6",
    "8": "http://www.bbc.co.uk/news/10628994",
}


@pytest.fixture
def xsum(folder):
    for name, url in ARTICLES.items():
        text = f"[XSUM]URL[XSUM]\n{url}\n\n[XSUM]INTRODUCTION[XSUM]\nSummary {name}.\n\n"
        text += f"[XSUM]RESTBODY[XSUM]\nShare this with\nEmail\nFirst of {name}.\nSecond.\n"
        write(folder / "xsum/xsum-extracts-from-downloads" / f"{name}.data", text)
    ids = dict.fromkeys(("train", "validation", "test"), [*ARTICLES, "missing"])
    write(folder / "xsum/XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json", json.dumps(ids))


def numbers(name, split, tokenizer):
    return "".join(text.split()[2][0] for text, _ in pairs(name, split, tokenizer))


def test_xsum(modules, xsum, folder, tokenizer):
    rows = pairs("xsum", "train", tokenizer)
    assert len(rows) == 8 and rows[0] == ("First of 1. Second.", "Summary 1.")
    assert pairs("xsum", "test", tokenizer)[0] == ("First of 1. Second.", ("Summary 1.",))
    write(folder / "xsum/xsum-extracts-from-downloads/3.data", "[XSUM]URL[XSUM]\nx\n")
    with pytest.raises(DataError, match=r"3.data: no part 'INTRODUCTION'"):
        pairs("xsum", "test", tokenizer)


def test_xsums_extrapolation(modules, xsum, tokenizer):
    expected = {"xsum_news_to_sports": ("12348", "56"), "xsum_within_news": ("123", "4")}
    for name, (trained, tested) in expected.items():
        assert numbers(name, "train", tokenizer) == numbers(name, "validation", tokenizer) == trained
        assert numbers(name, "test", tokenizer) == tested


def test_tfdss_rows_of_xsum_become_lines(modules):
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices({"document": ["One.\nTwo.  Three\n"], "summary": [" All.\n"]})
    (row,) = modules["xsum"].join_lines(rows).as_numpy_iterator()
    assert row == {"source": b"One. Two. Three", "target": b"All."}
