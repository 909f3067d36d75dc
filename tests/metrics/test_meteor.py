"""METEOR: its program's values, and errors that say what is missing."""

import importlib.util
import shutil
import subprocess

import pytest

from prompt_jax.metrics import meteor
from prompt_jax.metrics.generation import METRICS
from random_texts import needs_meteor, texts


@needs_meteor
@pytest.mark.slow
def test_meteor_equals_its_program():
    references, predictions = texts(20, 4)
    references[3], predictions[3] = ["the cat sat", "a dog"], "the cat sat"  # one without fragments
    references[4], predictions[4] = ["naïve ||| café\nhere"], "naïve café, here"
    predictions[5] = ""
    rows = meteor.statistics(references, predictions)

    def program(line: str) -> list[str]:
        command = ["java", "-Xmx2G", "-jar", str(meteor._jar()), "-", "-", "-stdio", "-l", "en", "-norm"]
        return subprocess.run(command, input=line.encode(), capture_output=True, check=True).stdout.decode().split("\n")

    raw = rows.copy()
    raw[3, 20] = 1  # the program itself leaves the run of such an answer out of a sum
    numbers = [" ".join(map(str, row)) for row in raw]
    *each, total = map(float, program(" ||| ".join(["EVAL", *numbers]) + "\n")[:-1])
    assert [meteor.score(row) for row in rows] == pytest.approx(each)
    assert meteor.score(rows.sum(axis=0)) == pytest.approx(total)
    assert meteor.score(rows[3]) == 1 and meteor.score(rows[5]) == 0 and 0 < meteor.score(rows[4]) < 1


def test_meteor_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(meteor.MeteorError, match="needs Java, and there is no `java`"):
        METRICS["meteor"]([["a"]], ["a"])
    monkeypatch.setattr(shutil, "which", lambda name: "java")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(meteor.MeteorError, match=r"pycocoevalcap: pip install '\.\[meteor\]'"):
        METRICS["meteor"]([["a"]], ["a"])


@pytest.mark.skipif(shutil.which("false") is None, reason="needs the command false")
def test_a_failing_program_is_reported(monkeypatch, tmp_path):
    jar = tmp_path / "meteor" / "meteor-1.5.jar"
    jar.parent.mkdir()
    jar.touch()
    spec = importlib.util.spec_from_loader("pycocoevalcap", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(shutil, "which", lambda name: "false")
    with pytest.raises(meteor.MeteorError, match="0 results for 1 examples"):
        METRICS["meteor"]([["a"]], ["a"])
