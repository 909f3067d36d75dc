"""Span corruption and prefix LM, against published lengths and examples, and by their invariants."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.data import denoising

WORDS = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
SENTINEL = 99  # and 98, 97... after it


def random(seed=0):
    return np.random.default_rng(seed)


def test_lengths_are_those_of_t5():
    """In T5's pretraining configuration, texts of 568 tokens give inputs of 512 and targets of 114."""
    assert denoising.max_text_length(512) == 568
    assert denoising.corrupted_lengths(568) == (512, 114)
    assert denoising.corrupted_lengths(569)[0] > 512


@pytest.mark.parametrize("input_length", [3, 4, 10, 31, 64, 513, 1000])
def test_the_longest_text_that_fits(input_length):
    length = denoising.max_text_length(input_length)
    fits = [n for n in range(2, 2 * input_length) if denoising.corrupted_lengths(n)[0] <= input_length]
    assert length == max(fits) and fits == list(range(2, length + 1))


def test_an_input_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="an input has at least 3 tokens, and may have 2"):
        denoising.max_text_length(2)


@settings(max_examples=100)
@given(length=st.integers(2, 300), seed=st.integers(0, 2**32))
def test_masks_have_the_right_density_and_spans(length, seed):
    mask = denoising.span_mask(length, random(seed))
    runs = [(value, len(list(run))) for value, run in itertools.groupby(mask.tolist())]
    assert len(mask) == length and not mask[0] and mask[-1]
    assert [value for value, _ in runs] == [False, True] * (len(runs) // 2)
    assert mask.sum() == min(max(round(0.15 * length), 1), length - 1)
    assert len(runs) // 2 == max(1, round(mask.sum() / 3))


def test_all_masks_are_equally_likely():
    """Of 20 tokens, 3 are masked in one span, always the last ones; of 30, 4; of 40, 6 in two spans."""
    assert denoising.noise_counts(40) == (6, 2)
    draw, count = random(1), 3300
    firsts = collections.Counter()
    for _ in range(count):
        mask = denoising.span_mask(40, draw)
        text = mask.argmax()
        firsts[text, (~mask[text:]).argmax()] += 1
    # The first span of text has 1 to 33 tokens, that of noise 1 to 5.
    assert set(firsts) == set(itertools.product(range(1, 34), range(1, 6)))
    expected = count / len(firsts)
    assert sum((n - expected) ** 2 / expected for n in firsts.values()) < 164 + 5 * (2 * 164) ** 0.5


def test_the_papers_example():
    """Raffel et al. 2020, figure 2: "for inviting" and "last" are replaced. The target replaces the rest."""
    ids = np.arange(len(WORDS), dtype=np.int32)
    mask = np.isin(WORDS, ["for", "inviting", "last"])
    inputs, targets = denoising.corrupt(ids, mask, SENTINEL)
    names = dict(enumerate(WORDS)) | {99: "<X>", 98: "<Y>", 97: "<Z>"}
    assert " ".join(names[i] for i in inputs.tolist()) == "Thank you <X> me to your party <Y> week ."
    assert " ".join(names[i] for i in targets.tolist()) == "<X> for inviting <Y> last <Z>"


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 50), min_size=2, max_size=120), seed=st.integers(0, 2**32))
def test_input_and_target_combine_to_the_text(ids, seed):
    ids = np.array(ids, np.int32)
    mask = denoising.span_mask(len(ids), random(seed))
    inputs, targets = denoising.corrupt(ids, mask, SENTINEL)
    assert inputs.dtype == targets.dtype == np.int32
    assert (len(inputs) + 1, len(targets) + 1) == denoising.corrupted_lengths(len(ids))
    sentinels = [i for i in inputs if i > 50]
    assert sentinels == list(range(SENTINEL, SENTINEL - len(sentinels), -1)) == [i for i in targets if i > 50]
    spans = {}
    for i in targets.tolist():
        if i > 50:
            spans[i] = (span := [])
        else:
            span.append(i)
    again = itertools.chain.from_iterable(spans.get(i, [i]) for i in inputs.tolist())
    assert list(again) == ids.tolist()


def test_splits_are_uniform():
    draw, ids = random(), np.arange(5, dtype=np.int32)
    cuts = [denoising.split_prefix(ids, draw) for _ in range(2000)]
    assert all(np.concatenate(cut).tolist() == ids.tolist() for cut in cuts)
    times = collections.Counter(len(first) for first, _ in cuts)
    assert set(times) == {1, 2, 3, 4} and all(400 < count < 600 for count in times.values())


@pytest.mark.parametrize("length", [0, 1])
def test_texts_of_fewer_than_two_tokens_are_refused(length):
    with pytest.raises(ValueError, match=f"at least 2 tokens, not {length}"):
        denoising.span_mask(length, random())
    with pytest.raises(ValueError, match=f"at least 2 tokens, not {length}"):
        denoising.split_prefix(np.zeros(length, np.int32), random())
