"""The sentiment tasks: the data equals its source, and splits are disjoint."""

import csv
import gzip
import importlib.util
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from prompt_jax.data.files import normalize_text
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import discover_tasks, mixture_rates

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tasks" / "data" / "sentiment"
COUNTS = {  # rows, rating > 0.5, rating < -0.5
    "movie": (10605, 4982, 5061),
    "amazon": (3708, 1725, 1218),
    "nyt": (5190, 1100, 1688),
    "tweets": (4200, 2300, 1062),
}
REMOVED = {"movie": 2, "amazon": 16, "nyt": 37, "tweets": 153}  # rated texts that are there already


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def registered():
    return discover_tasks(ROOT / "tasks" / "sentiment.py")


@pytest.fixture(scope="module")
def splits(registered):
    path = str(ROOT / "tasks" / "sentiment.py")
    module = next(m for m in sys.modules.values() if getattr(m, "__file__", None) == path)
    return {domain: module.examples(domain) for domain in COUNTS}


@pytest.mark.parametrize("domain", COUNTS)
def test_the_files_equal_their_source(domain):
    with gzip.open(DATA / f"{domain}.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[0] == ["id", "rating", "text"]
    ratings = [float(rating) for _, rating, _ in rows[1:]]
    assert (len(ratings), sum(r > 0.5 for r in ratings), sum(r < -0.5 for r in ratings)) == COUNTS[domain]
    assert len({identifier for identifier, _, _ in rows}) == len(rows)


@pytest.mark.parametrize("domain", COUNTS)
def test_all_rated_texts_are_in_one_split_each(splits, domain):
    rows = [row for split in splits[domain].values() for row in split]
    _, positive, negative = COUNTS[domain]
    assert len(rows) == positive + negative - REMOVED[domain]
    assert len({normalize_text(text) for text, _ in rows}) == len(rows)


def test_no_text_is_in_two_splits_of_any_domain(splits):
    keys = {
        name: {normalize_text(text) for domain in splits.values() for text, _ in domain[name]}
        for name in ("train", "validation", "test")
    }
    assert not keys["train"] & keys["validation"]
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]


def test_splits_have_their_shares_and_both_labels(splits):
    sizes = {name: len(rows) for name, rows in splits["movie"].items()}
    assert sizes == {"train": 8001, "validation": 1007, "test": 1033}
    for domain in splits.values():
        for rows in domain.values():
            assert {label for _, label in rows} == {"negative", "positive"}


def test_examples_have_the_sign_of_their_rating(splits):
    labels = {text: label for rows in splits["movie"].values() for text, label in rows}
    with gzip.open(DATA / "movie.tsv.gz", "rt", encoding="utf-8") as file:
        for line in list(file)[1:200]:
            _, rating, text = line.rstrip("\n").split("\t")
            expected = None if abs(float(rating)) <= 0.5 else "positive" if float(rating) > 0 else "negative"
            assert labels.get(text) == expected


def test_the_tasks_load_with_a_models_tokenizer(registered, tokenizer):
    assert {f"sentiment_{domain}{kind}" for domain in COUNTS for kind in ("", "_causal")} <= set(registered)
    examples = load_examples("sentiment_tweets", tokenizer, "validation", LoadOptions(64, 32, limit=20))
    assert len(examples) == 20
    assert examples.score(["positive"] * 20)["accuracy"] == examples.target_texts.count("positive") / 20
    assert examples.format is not None and examples.format.labels == ("negative", "positive")


def test_the_mixtures_rates_are_the_sizes_of_the_domains(splits):
    sizes = {f"sentiment_{domain}": float(len(own["train"])) for domain, own in splits.items()}
    assert mixture_rates("sentiment") == sizes


def test_the_maker_keeps_texts_and_is_reproducible(tmp_path, monkeypatch):
    maker = load_module(ROOT / "tools" / "make_sentiment.py")
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name in maker.SOURCES.values():
            raw = '1\t-0.5\t"Très" bon; \r\n2_1\t4\tno end'.encode()
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    with zipfile.ZipFile(tmp_path / "sdist.zip", "w") as archive:
        archive.writestr("v/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
        archive.writestr("v/LICENSE.txt", "MIT\r\n")
    for out in ("a", "b"):
        monkeypatch.setattr("sys.argv", ["x", str(tmp_path / "sdist.zip"), "--out", str(tmp_path / out)])
        maker.main()
    packed = (tmp_path / "a" / "movie.tsv.gz").read_bytes()
    assert packed == (tmp_path / "b" / "movie.tsv.gz").read_bytes()
    assert gzip.decompress(packed).decode() == 'id\trating\ttext\n1\t-0.5\t"Très" bon; \n2_1\t4\tno end\n'
    assert (tmp_path / "a" / "LICENSE").read_text() == "MIT\n"


@pytest.mark.parametrize("line", ["1\t2", "1\t5\ttext", "1\tx\ttext", "1\t2\t ", "1\t2\ta\tb"])
def test_the_maker_refuses_invalid_rows(line):
    maker = load_module(ROOT / "tools" / "make_sentiment.py")
    with pytest.raises(ValueError):
        maker.rows(line.encode())


def test_the_input_for_decoder_only_models(tokenizer, registered):
    plain, causal = (
        load_examples(name, tokenizer, "validation", LoadOptions(128, 32, limit=5))
        for name in ("sentiment_movie", "sentiment_movie_causal")
    )
    assert causal.input_texts == [f"Review: {text}\nSentiment:" for text in plain.input_texts]
    assert causal.target_texts == plain.target_texts
