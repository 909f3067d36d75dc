"""METEOR 1.5 for English, computed by its authors' program (Denkowski and Lavie 2014).

The program is in the package pycocoevalcap, the extra `meteor`, and needs Java. It reads all examples from standard
input and writes their statistics. The score is computed here, so that Java starts only once.
"""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from prompt_jax.errors import UserError

# The authors' parameters for ranking English translations.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # for matches of exact words, stems, synonyms and paraphrases


class MeteorError(UserError):
    """METEOR cannot run; the message says what it needs."""


def statistics(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Float[np.ndarray, "N 23"]:
    """Return the program's statistics of each example with its best reference, in the order documented at `score`.

    Raises:
      MeteorError: Java or the program is missing, or the program failed.
    """
    pairs = zip(references, predictions, strict=True)
    lines = [" ||| ".join(["SCORE", *map(_line, texts), _line(prediction)]) + "\n" for texts, prediction in pairs]
    command = [_java(), "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(_jar())]
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    done = subprocess.run([*command, *options], input="".join(lines).encode("utf-8"), capture_output=True)
    rows = done.stdout.decode("utf-8", errors="replace").splitlines()
    if done.returncode or len(rows) != len(lines):
        message = done.stderr.decode("utf-8", errors="replace").strip()[-500:]
        raise MeteorError(f"METEOR gave {len(rows)} results for {len(lines)} examples: {message}")
    numbers = np.array([[float(number) for number in row.split()] for row in rows])
    same = (numbers[:, :2] == numbers[:, 21:]).all(axis=1) & (numbers[:, 20] == 1)
    numbers[same, 20] = 0  # an answer equal to its reference has no fragmentation, also within a sum
    return numbers


def score(total: Float[np.ndarray, " K"]) -> float:
    """Return METEOR from the sum of the examples' statistics, as the program's MeteorScorer does.

    The statistics are counts in this order, each for the answer and the reference: words; function words; for each of
    the four kinds of match, the matched content words and the matched function words. Then follow one number of chunks
    (runs of matches in the same order), and the matched words of both. All are additive, except the chunks of an answer
    that equals its reference.
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
    """Return a text in the program's line format."""
    return " ".join(text.replace("|||", " ").split())


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise MeteorError("the metric meteor needs Java, and there is no `java` on the PATH")
    return java


def _jar() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")  # without importing it
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / "meteor" / "meteor-1.5.jar").is_file():
            return path
    raise MeteorError("the metric meteor needs the package pycocoevalcap: pip install '.[meteor]'")
