"""Tasks of this package as tasks of seqio: the same texts and ids."""

import pytest

import sentencepieces
from prompt_jax.data.files import file_task
from prompt_jax.data.registry import add_task
from prompt_jax.data.seqio_tasks import as_seqio
from prompt_jax.errors import DataError
from prompt_jax.task_format import UNLABELED, TaskFormat
from reviews import LABELS, REVIEW, load, review_file, source, text_task


def test_a_registered_task_renders_strings_and_integers(registry, tokenizer):
    columns = {"text": ["good\nfilm", "bad ünk"], "year": [1999, 2021], "label": [1, -1]}
    add_task("t_years", source(columns), TaskFormat("{year}: {text}, {year}", LABELS))
    examples = load("t_years", tokenizer)
    assert examples.input_texts == ["1999: good\nfilm, 1999", "2021: bad ünk, 2021"]
    assert examples.target_texts == ["good", UNLABELED]
    assert examples.unlabeled == 1
    assert examples.inputs[1].tolist() == [*tokenizer.encode("2021: bad ünk, 2021"), 1]
    assert len(load("t_years", tokenizer, limit=1)) == 1


def test_preprocessors_run_before_the_template(registry, tokenizer):
    def lower(dataset):
        import tensorflow as tf

        return dataset.map(lambda row: {"text": tf.strings.lower(row["loud"]), "answer": "good"})

    add_task("t_lower", source({"loud": ["A B"]}), REVIEW, target="answer", preprocessors=[lower])
    assert load("t_lower", tokenizer).input_texts == ["review: a b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": ["a"], "label": ["good"]}, "no column 'text' in the source; expected it among txt, label"),
        ({"text": [0.5], "label": ["good"]}, "column 'text' of the source is float32; expected strings or integers"),
        ({"text": ["a"], "label": ["worse"]}, "example 0 of t_wrong, train, has the target 'worse'; expected one of"),
        ({"text": ["a"], "label": [2]}, "has the target '2'; expected one of 'bad', 'good'"),
    ],
)
def test_a_source_that_does_not_match_its_format_is_an_error(registry, tokenizer, columns, message):
    add_task("t_wrong", source(columns), REVIEW)
    with pytest.raises(DataError, match=message):
        load("t_wrong", tokenizer)


def test_a_file_task_can_become_a_seqio_task(tmp_path, tokenizer):
    import seqio

    task = file_task("reviews", {"train": review_file(tmp_path)}, REVIEW)
    expected = load(task, tokenizer)
    again = load(as_seqio(task), tokenizer)
    assert again.input_texts == expected.input_texts and again.target_texts == expected.target_texts
    vocabulary = seqio.SentencePieceVocabulary(str(sentencepieces.model_file(tokenizer)), extra_ids=4)
    feature = seqio.Feature(vocabulary)
    bound = as_seqio(task).replace(output_features={"inputs": feature, "targets": feature})
    rows = bound.get_dataset({"inputs": 64, "targets": 16}, "train", shuffle=False).as_numpy_iterator()
    assert [row["targets"].tolist() for row in rows] == [ids.tolist() for ids in expected.targets]


def test_a_text_source_is_rendered_as_in_seqio(registry, tokenizer):
    rows = [("good\nfilm", "good"), ("bad \ufdd0ünk\ufdd1", "bad"), ("unknown", UNLABELED)]
    for sentinel in (False, True):
        task = text_task(f"t_{sentinel}", rows, sentinel=sentinel)
        columns = {name: [row[i] for row in rows] for i, name in enumerate(("text", "label"))}
        other = add_task(f"t_{sentinel}_seqio", source(columns), REVIEW, sentinel=sentinel)
        found, expected = load(task, tokenizer), load(other, tokenizer)
        assert found.input_texts == expected.input_texts == ["review: good\nfilm", "review: bad ünk", "review: unknown"]
        assert found.target_texts == expected.target_texts and found.unlabeled == expected.unlabeled == 1
        assert [ids.tolist() for ids in found.targets] == [ids.tolist() for ids in expected.targets]
