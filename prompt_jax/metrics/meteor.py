"""METEOR 1.5 for English, by its authors' program (Denkowski and Lavie 2014).

The program is in the package pycocoevalcap, an extra of this one, and needs Java. It is given all examples on its
standard input and gives what they add up to a score by; the score itself is worked out here, so that Java starts once.
"""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from prompt_jax.errors import UserError

# The parameters for English, chosen by the authors to rank translations.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # of words that match exactly, by stem, synonym and paraphrase


class MeteorError(UserError):
    """METEOR cannot be run; the message says what it needs."""


def statistics(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Float[np.ndarray, "N 23"]:
    """The program's statistics of each example with the reference that suits it best; `score` says what they are.

    Raises:
      MeteorError: no Java, no program, or it failed.
    """
    pairs = zip(references, predictions, strict=True)
    lines = [" ||| ".join(["SCORE", *map(_line, own), _line(prediction)]) + "\n" for own, prediction in pairs]
    command = [_java(), "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(_jar())]
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    done = subprocess.run([*command, *options], input="".join(lines).encode("utf-8"), capture_output=True)
    rows = done.stdout.decode("utf-8", errors="replace").splitlines()
    if done.returncode or len(rows) != len(lines):
        said = done.stderr.decode("utf-8", errors="replace").strip()[-500:]
        raise MeteorError(f"METEOR gave {len(rows)} results for {len(lines)} examples: {said}")
    numbers = np.array([[float(number) for number in row.split()] for row in rows])
    same = (numbers[:, :2] == numbers[:, 21:]).all(axis=1) & (numbers[:, 20] == 1)
    numbers[same, 20] = 0  # an answer that is its reference has no fragments, in a sum neither
    return numbers


def score(total: Float[np.ndarray, " K"]) -> float:
    """METEOR of examples whose statistics add up to this, as the program works it out (its MeteorScorer).

    The statistics are numbers of words: in the answer and in the reference; function words in either; for each of the
    four kinds of match the content words of either in it, and the function words; runs of matches in the same order;
    and matched words in either. Those of several examples add up, but for the runs of an answer that is its reference.
    """
    words, function_words, (chunks, *matched) = total[:2], total[2:4], total[20:]
    matches = total[4:20].reshape(4, 2, 2)  # kind; content or function words; answer or reference
    weighted = _WEIGHTS @ (_DELTA * matches[:, 0] + (1 - _DELTA) * matches[:, 1])
    if not weighted.all():
        return 0.0
    precision, recall = weighted / (_DELTA * (words - function_words) + (1 - _DELTA) * function_words)
    mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
    return float(mean * (1 - _GAMMA * (chunks / np.mean(matched)) ** _BETA))


def _line(text: str) -> str:
    """A text that the program's lines can hold."""
    return " ".join(text.replace("|||", " ").split())


def _java() -> str:
    found = shutil.which("java")
    if found is None:
        raise MeteorError("the metric meteor needs Java, and there is no `java` on the PATH")
    return found


def _jar() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")  # is not imported
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / "meteor" / "meteor-1.5.jar").is_file():
            return path
    raise MeteorError("the metric meteor needs the package pycocoevalcap: pip install 'prompt-jax[meteor]'")
