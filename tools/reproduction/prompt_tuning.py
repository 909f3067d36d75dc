"""Tables and curves of Lester, Al-Rfou and Constant 2021 (arXiv 2104.08691v2). Curves have no printed numbers."""

import dataclasses
from typing import Any

from tools.reproduction.table import SENTINEL, Column, Evaluation, Row, Table, Training, short

SIZES = ("small", "base", "large", "xl", "xxl")
ADAPTED = {f"T5-{size}": f"google/t5-{size}-lm-adapt" for size in SIZES}
PRETRAINED = {f"T5-{size}": f"google/t5-v1_1-{size}" for size in SIZES}
# Parameters of T5 1.1, for the x axis.
MILLIONS = {"T5-small": 77, "T5-base": 248, "T5-large": 783, "T5-xl": 2850, "T5-xxl": 11135}

SUPER_GLUE = {
    "BoolQ": ("boolq", {"acc": "accuracy"}),
    "CB": ("cb", {"acc": "accuracy", "F1": "mean_class_f1"}),
    "COPA": ("copa", {"acc": "accuracy"}),
    "MultiRC": ("multirc", {"EM": "group_exact_match", "F1a": "f1"}),
    "ReCoRD": ("record", {"EM": "exact_match", "F1": "squad_f1"}),
    "RTE": ("rte", {"acc": "accuracy"}),
    "WiC": ("wic", {"acc": "accuracy"}),
    "WSC": ("wsc", {"acc": "referent_accuracy"}),
}
AVERAGE = Column("SuperGLUE", None, "", "validation")
# Words that initialize virtual tokens of tasks without class labels (section 3.1), one token per word.
WORDS = {
    "record": ("commonsense", "reasoning", "reading", "comprehension"),
    "wsc": ("commonsense", "pronoun", "resolution"),
}
SEEDS = (0, 1, 2)

# Turns a prompt's configuration into model tuning, with the settings of configs/model_tuning.py.
MODEL_TUNING: dict[str, Any] = {"prompt.method": "full", "optimizer.learning_rate": 0.001}
MODEL_TUNING |= {"optimizer.parameter_scale": True, "optimizer.weight_decay": 0.0}
MODEL_TUNING |= {"train.batch_size": 128, "train.accumulate": 4}

# Brown et al. 2020, table H.1: few-shot scores on SuperGLUE's validation sets, shown in the prompt paper's figure 1.
GPT3 = {125: 50.2, 350: 56.2, 760: 56.8, 1300: 60.0, 2700: 64.3, 6700: 63.6, 13000: 66.9, 175000: 73.2}


def sizes(model: str | None, family: dict[str, str] = ADAPTED) -> dict[str, str]:
    """Return the bases of a table by row name: the paper's, or the one that replaces them."""
    return family if model is None else {model: model}


def on_super_glue(base: str, task: str, **options: Any) -> Training:
    """Return prompt tuning on a task, e.g. `boolq` or `boolq_sentinel`, with the paper's settings."""
    name, sentinel, _ = task.partition(SENTINEL)
    own: dict[str, Any] = {"model.name": base, "data.task": f"super_glue_{name}_v102{sentinel}"}
    own |= {"data.target_length": None, "ensemble.seed": SEEDS}
    if name in WORDS and options.get("prompt.init", "labels") == "labels":
        own |= {"prompt.init_labels": WORDS[name]}
    # The name states the settings, so that tables share equal runs.
    changes = (
        f"-{name.rpartition('.')[2]}-{len(value) if isinstance(value, tuple) else value}"
        for name, value in options.items()
    )
    return Training(f"prompt-{short(base)}-{task}{''.join(changes)}", "configs/boolq.py", own | options)


def one_by_one(training: Training) -> tuple[Training, ...]:
    """Return one run per seed: trainable parameters of several full models do not fit together."""
    return tuple(
        dataclasses.replace(training, name=f"{training.name}-{seed}", options={**training.options, "train.seed": seed})
        for seed in SEEDS
    )


def each_task(base: str, **options: Any) -> tuple[Training, ...]:
    return tuple(on_super_glue(base, task, **options) for task, _ in SUPER_GLUE.values())


def columns() -> tuple[Column, ...]:
    """Return columns for SuperGLUE's score and the metrics that it averages."""
    return (
        AVERAGE,
        *(
            Column(f"{name} {called}", f"super_glue_{task}_v102", metric, "validation")
            for name, (task, metrics) in SUPER_GLUE.items()
            for called, metric in metrics.items()
        ),
    )


def superglue(model: str | None) -> Table:
    rows = []
    for name, base in sizes(model).items():
        x = MILLIONS.get(name)
        rows.append(Row(f"{name}, prompt tuning", each_task(base), series="prompt tuning", x=x))
    for name, base in sizes(model, PRETRAINED).items():
        x = MILLIONS.get(name)
        tuned = tuple(
            each
            for task, _ in SUPER_GLUE.values()
            for each in one_by_one(
                Training(
                    f"model-{short(base)}-{task}",
                    "configs/model_tuning.py",
                    {"model.name": base, "data.task": f"super_glue_{task}_v102", "data.target_length": None},
                )
            )
        )
        rows.append(Row(f"{name}, model tuning", tuned, series="model tuning", x=x))
        together = Training(
            f"model-{short(base)}-multitask",
            "configs/model_tuning.py",
            {"model.name": base, "data.task": "super_glue_with_dpr_v102", "data.target_length": None}
            # 2**20 tokens per batch, accumulated
            | {"data.task_names": True, "train.batch_size": 2048, "train.accumulate": 64},
        )
        title = "model tuning, multitask"
        rows.append(Row(f"{name}, {title}", one_by_one(together), series=title, x=x))
    for name, base in sizes(model).items():
        asked = tuple(
            Evaluation(
                f"few-shot-{short(base)}-{task}",
                {"model": base, "task": f"super_glue_{task}_v102", "split": "validation", "shots": "fit"}
                | {"shot_seeds": SEEDS, "dtype": "bfloat16"},
            )
            for task, _ in SUPER_GLUE.values()
        )
        title = f"{name}, prompt design: our few-shot, same frozen base"
        rows.append(Row(title, asked, series="prompt design, T5", x=MILLIONS.get(name)))
    for millions, score in GPT3.items():
        name = f"GPT-3 {millions:,}M, few-shot, as published (Brown et al. 2020)"
        rows.append(Row(name, paper={"SuperGLUE": score}, series="GPT-3 few-shot", x=millions))
    return Table(
        "SuperGLUE by size of the model",
        "Lester et al. 2021, figure 1, a plot; validation splits. According to the text, prompt tuning matches "
        "multitask model tuning at XXL, T5-small's prompts come near GPT-3 XL's few-shot score, and T5-large's exceed "
        "that of GPT-3 175B.",
        columns(),
        tuple(rows),
        x="parameters (millions)" if model is None else "",
    )


def prompt_length(model: str | None) -> Table:
    rows = [
        Row(
            f"{name}, {length}",
            each_task(base, **({} if length == 100 else {"prompt.length": length})),
            series=name,
            x=length,
        )
        for name, base in sizes(model).items()
        for length in (1, 5, 20, 100, 150)
    ]
    return Table(
        "Prompt length",
        "Lester et al. 2021, figure 3a, a plot: gains beyond 20 tokens are small; beyond 100, large models get worse.",
        columns(),
        tuple(rows),
        x="virtual tokens",
    )


def initialization(model: str | None) -> Table:
    rows = [
        Row(
            f"{name}, {title}",
            each_task(base, **({} if init == "labels" else {"prompt.init": init})),
            series=title,
            x=MILLIONS.get(name),
        )
        for title, init in {"random uniform": "uniform", "sampled vocabulary": "vocab", "class label": "labels"}.items()
        for name, base in sizes(model).items()
    ]
    return Table(
        "Initialization",
        "Lester et al. 2021, figure 3b, a plot: class labels are best and random values worst; at XXL there is no "
        "difference.",
        columns(),
        tuple(rows),
        x="parameters (millions)" if model is None else "",
    )


def lm_adaptation(model: str | None) -> Table:
    kinds: dict[str, tuple[dict[str, str], str]] = {
        "span corruption": (PRETRAINED, ""),
        "span corruption, sentinel before targets": (PRETRAINED, SENTINEL),
        "LM adaptation, 100k steps": (ADAPTED, ""),
    }
    if model is not None:
        kinds = {"plain targets": ({model: model}, ""), "sentinel before targets": ({model: model}, SENTINEL)}
    rows = []
    for title, (family, suffix) in kinds.items():
        for name, base in family.items():
            steps = tuple(on_super_glue(base, f"{task}{suffix}") for task, _ in SUPER_GLUE.values())
            rows.append(Row(f"{name}, {title}", steps, series=title, x=MILLIONS.get(name)))
    return Table(
        "LM adaptation",
        "Lester et al. 2021, figures 3c and 3d, plots: prompts improve with longer LM adaptation; without it, middle "
        "sizes answer with invalid labels. configs/lm_adaptation.py makes bases of fewer steps (figure 3d); pass each "
        "one with --model in a separate call.",
        columns(),
        tuple(rows),
        x="parameters (millions)" if model is None else "",
    )


DOMAINS = {
    "SQuAD": ("squad_v010_allanswers", (94.9, 0.2), (94.8, 0.1)),
    "TextbookQA": ("mrqa_textbook_qa", (54.3, 3.7), (66.8, 2.9)),
    "BioASQ": ("mrqa_bio_asq", (77.9, 0.4), (79.1, 0.3)),
    "RACE": ("mrqa_race", (59.8, 0.6), (60.7, 0.5)),
    "RE": ("mrqa_relation_extraction", (88.4, 0.1), (88.8, 0.2)),
    "DuoRC": ("mrqa_duo_rc", (68.9, 0.7), (67.7, 1.1)),
    "DROP": ("mrqa_drop", (68.9, 1.7), (67.1, 1.9)),
}


def domain_shift(model: str | None) -> Table:
    rows = []
    for number, (method, family) in enumerate({"model tuning": PRETRAINED, "prompt tuning": ADAPTED}.items(), start=1):
        base = model or family["T5-xxl"]
        name = f"squad-{method.split()[0]}-{short(base)}"
        if method == "model tuning":
            steps = one_by_one(Training(name, "configs/squad.py", {"model.name": base, **MODEL_TUNING}))
        else:
            steps = (Training(name, "configs/squad.py", {"model.name": base, "ensemble.seed": SEEDS}),)
        paper = {title: figures[number] for title, figures in DOMAINS.items()} if model is None else {}
        rows.append(Row(method, steps, paper=paper))
    return Table(
        "Domain shift: from SQuAD to other domains",
        "Lester et al. 2021, table 1: F1, zero-shot. The table does not state the model size; XXL is assumed.",
        tuple(
            Column(name, task, "squad_f1", "validation" if name == "SQuAD" else "test")
            for name, (task, *_) in DOMAINS.items()
        ),
        tuple(rows),
    )


PARAPHRASE = {
    ("qqp", "mrpc"): {"model tuning": ((73.1, 0.9), (81.2, 2.1)), "prompt tuning": ((76.3, 0.1), (84.3, 0.3))},
    ("mrpc", "qqp"): {"model tuning": ((74.9, 1.3), (70.9, 1.2)), "prompt tuning": ((75.4, 0.8), (69.7, 0.3))},
}


def paraphrase(model: str | None) -> Table:
    """Return the table of training on one of two paraphrase tasks and testing on the other."""
    rows, found = [], []
    for source, target in PARAPHRASE:
        task = f"glue_{target}_from_{source}_v200"
        shown = f"{source.upper()} → {target.upper()}"
        found += [
            Column(f"{shown} acc", task, "accuracy", "validation"),
            Column(f"{shown} F1", task, "f1", "validation"),
        ]
    for method in ("model tuning", "prompt tuning"):
        base = model or (PRETRAINED if method == "model tuning" else ADAPTED)["T5-xxl"]
        steps, paper = [], {}
        for (source, target), figures in PARAPHRASE.items():
            options = MODEL_TUNING if method == "model tuning" else {"ensemble.seed": SEEDS}
            name = f"{source}-{method.split()[0]}-{short(base)}"
            training = Training(name, f"configs/{source}.py", {"model.name": base, **options})
            asked = {"task": f"glue_{target}_from_{source}_v200", "split": "validation"}
            for each in one_by_one(training) if method == "model tuning" else (training,):
                steps.append(Evaluation(f"{each.name}-on-{target}", asked, of=each))
            shown = f"{source.upper()} → {target.upper()}"
            paper |= dict(zip((f"{shown} acc", f"{shown} F1"), figures[method], strict=True))
        rows.append(Row(method, tuple(steps), paper=paper if model is None else {}))
    return Table(
        "Domain shift: paraphrases",
        "Lester et al. 2021, table 2: tuned on one of QQP and MRPC, tested zero-shot on the other. The table does not "
        "state the model size; XXL is assumed.",
        tuple(found),
        tuple(rows),
    )


TABLE_3 = {  # average, best, vote
    "SuperGLUE": (90.5, 91.0, 91.3),
    "BoolQ acc": (91.1, 91.3, 91.7),
    "CB acc": (99.3, 100, 100),
    "CB F1": (99.0, 100, 100),
    "COPA acc": (98.8, 100, 100),
    "MultiRC EM": (65.7, 66.3, 67.1),
    "MultiRC F1a": (88.7, 89.0, 89.4),
    "ReCoRD EM": (92.7, 92.9, 93.2),
    "ReCoRD F1": (93.4, 93.5, 93.9),
    "RTE acc": (92.6, 93.5, 93.5),
    "WiC acc": (76.2, 76.6, 77.4),
    "WSC acc": (95.8, 96.2, 96.2),
}


def ensembles(model: str | None) -> Table:
    base = model or ADAPTED["T5-xxl"]
    trained = each_task(base, **{"ensemble.seed": tuple(range(5))})
    steps = tuple(
        Evaluation(f"{each.name}-vote", {"task": each.options["data.task"], "split": "validation"}, of=each)
        for each in trained
    )
    paper = [{name: figures[i] for name, figures in TABLE_3.items()} if model is None else {} for i in range(3)]
    return Table(
        "Ensembles of five prompts",
        "Lester et al. 2021, table 3: T5-XXL, majority vote; validation splits.",
        columns(),
        (
            Row("average", steps, paper=paper[0]),
            Row("best", steps, of="best", paper=paper[1]),
            Row("vote", steps, of="vote", paper=paper[2]),
        ),
    )
