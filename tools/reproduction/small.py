"""Small editions of the tables, for two CPU cores: the demo's T5 on E2E, and on movie reviews instead of SuperGLUE."""

from typing import Any

from tools.reproduction.table import Column, Evaluation, Row, Search, Table, Templates, Training

SENTIMENT, E2E = "configs/results/sentiment.py", "configs/results/e2e.py"
MOVIE = Column("movie", "sentiment_movie", "accuracy")
OTHERS = tuple(Column(name, f"sentiment_{name}", "accuracy") for name in ("amazon", "nyt", "tweets"))
REVIEWS = "accuracy on movie reviews"
TESTS = {"data.test_tasks": tuple(column.task for column in OTHERS)}

_ADAMW: dict[str, Any] = {"optimizer.name": "adamw", "optimizer.weight_decay": 0.0}
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "prompt": ("prompt, 20 tokens", {}, (0.1, 0.3, 1.0)),
    "prefix": (
        "prefix, length 10, MLP of 512",
        {"prompt.method": "prefix", "prompt.length": 10, "prompt.init": "normal", "prompt.mlp_width": 512, **_ADAMW},
        (0.0003, 0.001, 0.003),
    ),
    "adapter": ("adapters of width 64 (Houlsby)", {"prompt.method": "adapter"}, (0.0003, 0.001, 0.003)),
    "last-layers": ("last two layers", {"prompt.method": "last_layers"}, (0.0003, 0.001, 0.003)),
    "full": ("full model", {"prompt.method": "full"}, (0.0001, 0.0003, 0.001)),
}
TEMPLATES = {
    "sentiment_movie": Templates(
        "sentiment-templates",
        {"model": "demo", "task": "sentiment_movie", "limit": 300},
        (
            "Input: {input} Answer:",
            "Review: {input} Sentiment:",
            "Is the following review positive or negative? {input}",
        ),
        "rank/accuracy",
    ),
    "e2e": Templates(
        "e2e-templates",
        {"model": "demo", "task": "e2e", "limit": 64},
        ("Data: {input} Description:", "Describe the restaurant: {input}", "Write a sentence from this data: {input}"),
        "bleu",
    ),
}


def trained(method: str, name: str | None = None, config: str = SENTIMENT, **options: Any) -> Training:
    """Return a run of a method with the best learning rate of its search on movie reviews."""
    _, own, rates = METHODS[method]
    search = Search(f"sentiment-{method}-rates", SENTIMENT, own, rates)
    run = "sentiment" if config == SENTIMENT else "small-e2e"
    return Training(f"{run}-{name or method}", config, {**own, **options}, search)


# Shared by several tables.
FIVE = trained("prompt", **{"ensemble.seed": tuple(range(5)), **TESTS})
FULL = trained("full", **TESTS)
SEARCH = "The learning rate of each method is the best of three on 300 validation reviews, with one seed: "
RATES = "; ".join(f"{title}: {', '.join(f'{rate:g}' for rate in rates)}" for title, _, rates in METHODS.values())


def asked(task: str, shots: int, limit: int | None) -> Evaluation:
    """Return prompt design, with three draws of in-context examples if there are any."""
    seeds = (0, 1, 2) if shots else (0,)
    options: dict[str, Any] = {"model": "demo", "task": task, "shots": shots, "shot_seeds": seeds}
    options |= {} if limit is None else {"limit": limit}
    return Evaluation(f"{task.removesuffix('_movie')}-{shots}-shot", options, search=TEMPLATES[task])


def tried(task: str) -> str:
    """Describe the choice of the template."""
    search = TEMPLATES[task]
    words = "; ".join(f"“{design}”" for design in search.designs)
    return f"Prompt design uses the best of three templates on {search.options['limit']} validation examples: {words}."


def methods() -> Table:
    ranked = Column("movie, ranking", "sentiment_movie", "rank/accuracy")
    rows = [
        Row("prompt design, zero-shot", (asked("sentiment_movie", 0, None),)),
        # Fewer reviews, because in-context examples make inputs long.
        Row("prompt design, 8 examples (300 reviews)", (asked("sentiment_movie", 8, 300),)),
        *(
            Row(title, ({"prompt": FIVE, "full": FULL}.get(method) or trained(method),))
            for method, (title, *_) in METHODS.items()
        ),
    ]
    return Table(
        "Methods on movie reviews",
        "Replaces figure 1 of Lester et al. 2021 and tables 2 and 3 of Li and Liang 2021. Accuracy of the more "
        f"probable label (in the plot), and of generated answers; 1,033 test reviews. {SEARCH}{RATES}. "
        f"{tried('sentiment_movie')}",
        (ranked, MOVIE),
        tuple(rows),
        plotted=REVIEWS,
    )


def domain_shift() -> Table:
    return Table(
        "Domain shift: from movie reviews to other domains",
        "Replaces table 1 of Lester et al. 2021: tuned on movie reviews, tested on others.",
        (MOVIE, *OTHERS),
        (
            Row("full model", (FULL,)),
            Row("prompt, 20 tokens", (FIVE,)),
        ),
        plotted="accuracy",
    )


def prompt_length() -> Table:
    rows = [
        Row(
            f"{length} token{'s' * (length > 1)}",
            (FIVE if length == 20 else trained("prompt", f"length-{length}", **{"prompt.length": length}),),
            series="prompt",
            x=length,
        )
        for length in (1, 5, 20, 100, 150)
    ]
    return Table(
        "Prompt length on movie reviews",
        "Replaces figure 3a of Lester et al. 2021; all lengths use the learning rate of 20 tokens.",
        (MOVIE,),
        tuple(rows),
        x="virtual tokens",
        plotted=REVIEWS,
    )


def initialization() -> Table:
    rows = [
        Row(title, (FIVE if init == "vocab" else trained("prompt", f"init-{init}", **{"prompt.init": init}),))
        for title, init in {
            "random uniform": "uniform",
            "sampled vocabulary": "vocab",
            "class labels": "labels",
        }.items()
    ]
    return Table(
        "Initialization on movie reviews",
        "Replaces figure 3b of Lester et al. 2021; prompts of 20 tokens, two of them from class labels. All "
        "initializations use the learning rate of sampled vocabulary.",
        (MOVIE,),
        tuple(rows),
        plotted=REVIEWS,
    )


def ensembles() -> Table:
    return Table(
        "An ensemble of five prompts",
        "Replaces table 3 of Lester et al. 2021: five seeds, majority vote, on the training domain and on others. The "
        "best is the best on each test set, as in the paper.",
        (MOVIE, *OTHERS),
        (Row("average", (FIVE,)), Row("best", (FIVE,), of="best"), Row("vote", (FIVE,), of="vote")),
        plotted="accuracy",
    )


def low_data() -> Table:
    inits = {"uniform": "random uniform", "vocab": "sampled vocabulary", "labels": "class labels"}
    few = {"train.steps": 60, "train.eval_every": 20, "train.eval_examples": 100, "train.test_examples": 400}
    rows = []
    for size in (50, 100, 200, 500):
        steps = tuple(
            trained(
                "prompt",
                f"{size}-subset-{subset}",
                **{"data.train_examples": size, "data.subset_seed": subset, **few},
                **{"ensemble.seed": (subset,), "ensemble.init": tuple(inits)},
            )
            for subset in range(3)
        )
        for init, title in inits.items():
            name = f"{size} examples, {title}"
            rows.append(Row(name, steps, where={"prompt.init": init}, series=title, x=size))
    return Table(
        "Low data: movie reviews by number of examples and initialization",
        "Replaces figure 5 of Li and Liang 2021: prompts of 20 tokens, 60 steps; three nested subsets, one seed each; "
        "the learning rate of all reviews and sampled vocabulary; the best of three steps on 100 validation reviews, "
        "tested on 400 reviews.",
        (MOVIE,),
        tuple(rows),
        x="training examples",
        plotted=REVIEWS,
    )


def e2e() -> Table:
    metrics = {"BLEU": "bleu", "NIST": "nist", "ROUGE-L": "coco_rouge_l", "CIDEr": "cider"}
    runs = {method: trained(method, config=E2E) for method in METHODS}
    return Table(
        "E2E: prefixes and baselines",
        "Replaces table 2 of Li and Liang 2021: 60 steps of 8 examples, the learning rates of the search on movie "
        "reviews; the best step on 24 validation tables; 64 of the 630 test tables, greedy answers. It compares how "
        f"fast methods learn, not how well they do in the end. {tried('e2e')}",
        tuple(Column(title, "e2e", metric) for title, metric in metrics.items()),
        (
            Row("prompt design, zero-shot", (asked("e2e", 0, 64),)),
            Row("prompt design, 4 examples", (asked("e2e", 4, 64),)),
            *(Row(title, (runs[method],)) for method, (title, *_) in METHODS.items()),
        ),
        plotted="BLEU on E2E",
    )
