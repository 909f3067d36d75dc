"""Every option of an experiment, as typed and documented dataclasses. Imports nothing heavy.

A file in `configs/` builds one `Experiment`, named `experiment`; the command line overrides any field of it.
"""

import builtins
import dataclasses
import json
import math
import operator
import runpy
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from prompt_jax.errors import UserError
from prompt_jax.paths import as_path

Dtype = Literal["float32", "bfloat16", "int8"]
Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The frozen base."""

    name: str = "demo"
    """A Hugging Face name, a folder in the hub's layout, or `demo`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "float32"
    """Of the base's weights and the activations; what is trained is float32. With int8 the matrices of the layers have
    8 bits a weight, and all else is bfloat16, the activations included."""
    remat: Remat = "none"
    """What the backward pass computes a second time, to save memory: nothing; attention and activation functions, but
    not the products with the weights (dots); or whole layers (full): about a third slower, with a fraction of the
    memory."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A registered task, or the user's own files."""

    task: str | None = None
    """Name of a seqio task in the tasks folder, or of a mixture of such tasks, whose rates say how often each is drawn.
    Leave out when files are given."""
    task_names: bool = False
    """Whether the short name of an input's task and a space come before it, as in T5's training on many tasks."""
    train: Path | None = None
    """The user's own training data: a .jsonl, .csv or .tsv file (also .gz)."""
    validation: Path | None = None
    """Validation file; without one, `validation_share` of the training file is held out."""
    test: Path | None = None
    """Test file."""
    validation_share: float = 0.1
    """Share of the training file that is held out, by a hash of the input text."""
    template: str = "{text}"
    """Input text of a row of a file, with its columns in braces."""
    target: str = "label"
    """Column of a file with the answer: a label, its number, or free text where `labels` is empty."""
    labels: tuple[str, ...] = ()
    """Possible answers in the order of their numbers, for files."""
    metrics: tuple[str, ...] = ()
    """Names of metrics (`prompt_jax.task_format`); the first decides which prompt is the best, or their mean
    (train.best_by). Left out, the task's own, and accuracy for files."""
    train_examples: int | None = None
    """Train on so many examples, of a mixture of each task, drawn at random; None is all. What is drawn for less is
    part of what is for more."""
    subset_seed: int = 0
    """Of that draw, which is the same whatever train.seed is."""
    input_length: int | None = None
    """Longest input in tokens, end token included; what is cut is counted and reported. None is the task's own."""
    target_length: int | None = None
    """Longest target in tokens, end token included; also the longest generated answer. None is the task's own."""
    buckets: int = 6
    """Number of input lengths that batches are padded to, chosen for the least padding: one compilation each."""
    test_tasks: tuple[str, ...] = ()
    """Other tasks on whose test splits the trained prompts are scored as well: how they bear a shift of domain."""


Initialization = Literal["uniform", "normal", "zero", "vocab", "labels", "text", "file"]


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """What is trained: a soft prompt, a prefix, or what these are compared with."""

    method: Literal["soft_prompt", "prefix", "adapter", "last_layers", "full"] = "soft_prompt"
    """Virtual tokens in the input (Lester et al. 2021), or keys and values in every layer (Li and Liang 2021). To
    compare with: adapters, the last layers of the decoder, or the full model; length, placement and init are not for
    these."""
    length: int = 100
    """Number of virtual tokens, or of keys and values in each layer."""
    sites: tuple[Literal["encoder_self", "decoder_self", "decoder_cross"], ...] = ()
    """Of a prefix: the attentions that it is for; left out, all that the model has."""
    placement: Literal["before", "after"] = "before"
    """Before the input (the papers') or after it, between source and target: the infix of a causal model."""
    init: Initialization = "labels"
    """First values: uniform or normal random; zero; embeddings of a sample of the common vocabulary, without
    replacement; the task's class labels; a text, a piece a token, of which a prefix has the activations; or a prompt
    file, such as another task's (SPoT, Vu et al. 2022). With an MLP they are those of its table. A prefix takes neither
    vocab nor labels."""
    init_range: tuple[float, float] = (-0.5, 0.5)
    """Of `uniform`. The prompt paper's; its code draws from 0 to 0.5, the prefix paper from 0 to 1."""
    init_vocab: int = 5000
    """How many of the most common pieces `vocab` draws from."""
    init_labels: tuple[str, ...] = ()
    """Words for `labels` to use instead of the task's labels: one virtual token per word."""
    init_text: str = ""
    """Text for `text`, tokenized with a leading space as in the middle of a sentence. A prefix must have one slot per
    token."""
    init_file: Path | None = None
    """Of `file`: a prompt of this length and base, `.npz`, T5X's `.npy` or a folder with PEFT's adapter."""
    init_member: int | None = None
    """Of `file`: the number of the prompt in it, if it is an ensemble's."""
    init_rest: Literal["vocab", "uniform"] = "vocab"
    """How `labels` and `text` fill the virtual tokens that they do not reach."""
    tie_layers: bool = False
    """Whether layers i and i + L / 2 of a decoder of L have one prefix, as PEFT gives them one where L is even: only
    such prefixes of an encoder-decoder can be exported to it. Half as much is trained; the file has all layers. Needs
    `sites` decoder_self."""
    mlp_width: int | None = None
    """Width of the MLP that makes the prompt from a table while it is trained (the prefix paper: 512 for tables, 800
    for summaries), and that is not in its file. None trains the prompt itself."""
    per_task: Literal["add", "concatenate", "project"] | None = None
    """A prompt for each task of a mixture, made of one that all tasks share and a part of the task's own: vectors that
    are added to the shared ones; virtual tokens that come after them; or an affine map of each. The file has the
    prompts that are made. Of soft_prompt."""
    task_length: int | None = None
    """Of `concatenate`: virtual tokens of each task, beside the `length` that tasks share; left out, as many."""
    mlp_layers: int = 1
    """Hidden layers of the MLP."""
    dropout: float = 0.0
    """Dropout of a prefix's keys and values while training."""
    shift_positions: bool = True
    """Whether learned positions of the text are counted on from a prefix before it. For BART: PEFT shifts them, the
    prefix paper's code does not."""
    layers: int = 2
    """Of `last_layers`: how many blocks. The prefix paper's code trains the final norm and, beside two blocks, the tied
    embedding as well."""
    adapter: Literal["houlsby", "lin"] = "houlsby"
    """Adapters after each sublayer (Houlsby et al. 2019), or one with a norm after each layer (Lin et al. 2020)."""
    adapter_width: int = 64
    """Of an adapter's bottleneck."""
    adapter_share: float | None = None
    """In place of the width: the share of the base's parameters that adapters have together."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule. The defaults are the prompt-tuning paper's."""

    name: Literal["adafactor", "adamw"] = "adafactor"
    """The algorithm."""
    learning_rate: float = 0.3
    """The highest rate of the schedule."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or go to zero at the last step, linearly or along a cosine."""
    warmup_steps: int = 0
    """Steps in which the rate rises linearly from zero."""
    weight_decay: float = 1e-5
    """Adafactor: share of a parameter lost per step whatever the rate, as in T5X. AdamW: times the rate."""
    clip_norm: float | None = None
    """Gradients of a larger global norm are scaled down to it."""
    decay_rate: float = 0.8
    """Adafactor's exponent of the second moment's decay."""
    parameter_scale: bool = False
    """Adafactor: multiply updates by the root mean square of what they are added to, at least 1e-3. T5 is trained and
    tuned so; prompts are not."""
    decay_offset: int = 0
    """Adafactor: counts steps from here. -1_100_000 reproduces the paper's code, which went on counting from the
    base's checkpoint, so that its updates stayed clipped."""
    beta1: float = 0.9
    """AdamW."""
    beta2: float = 0.999
    """AdamW."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = 30_000
    """Optimizer steps."""
    epochs: float | None = None
    """Passes over the training data; given, they and not `steps` say how long training takes."""
    batch_size: int = 32
    """Examples a step."""
    accumulate: int = 1
    """Parts that a batch is processed in, one after the other, to save memory; the result is the same."""
    seed: int = 0
    """Of initialisation, data order and dropout."""
    dropout_rate: float = 0.0
    """Dropout in the base while training. The paper does not state it; its code's value is 0.1. The masks depend on a
    batch's shape, so a row has other masks in another length bucket."""
    loss: Literal["token", "sentence"] = "token"
    """The loss of a batch: the mean over its target tokens, or the mean over its examples of their tokens' sum, as in
    the prefix paper's code."""
    z_loss: float = 1e-4
    """Weight of the squared log-normaliser of the output, which keeps logits from drifting (T5X's default)."""
    eval_every: int = 500
    """Steps between evaluations on the validation split."""
    eval_examples: int | None = None
    """At most so many validation examples, drawn at random but always the same; None is all."""
    test_examples: int | None = None
    """At most so many examples of each test split, likewise; None is all."""
    eval_batch_size: int = 64
    """Examples a batch in evaluation."""
    best_by: Literal["first", "mean"] = "first"
    """What decides which prompt is the best, and when patience ends: the task's first metric, or the mean of those that
    are shares, the higher the better (the prompt paper's choice, where a task has several). Of a mixture it is always
    the mean over its tasks."""
    patience: int | None = None
    """Stop after so many evaluations in a row without a better one."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the latest checkpoints stay."""
    save_errors: Literal["stop", "continue"] = "stop"
    """What happens when a checkpoint or a prompt cannot be written, as to a full disk. The last whole ones stay."""
    log_every: int = 10
    """Steps between lines in the logs."""


@dataclasses.dataclass(frozen=True)
class EnsembleConfig:
    """Several prompts trained at once, each as it would be alone. A list has a value for each member, or one for all
    of them; left out, members have the experiment's."""

    size: int | None = None
    """Number of members. Left out, as many as the longest list has values, or a single prompt."""
    group: int | None = None
    """Members that are processed at once, the groups one after the other; None is all of them, which is for
    accelerators. On a CPU large matrices gain nothing from being stacked: 1 is the fastest, and takes least memory."""
    seed: tuple[int, ...] = ()
    """Of initialisation, data order and dropout. Left out, train.seed and the numbers that follow it."""
    learning_rate: tuple[float, ...] = ()
    """As optimizer.learning_rate."""
    weight_decay: tuple[float, ...] = ()
    """As optimizer.weight_decay."""
    length: tuple[int, ...] = ()
    """As prompt.length. Members of one length share a compiled step."""
    init: tuple[Initialization, ...] = ()
    """As prompt.init."""
    init_member: tuple[int, ...] = ()
    """As prompt.init_member: 0, 1, 2 gives each of three members its own of the file."""
    task: tuple[str, ...] = ()
    """As data.task: a bank of prompts, one for each task."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are generated: the most probable token at each step, beam search, or sampling.

    Settings left at None come from the checkpoint's generation_config.json, except its sampling, which is not used
    because evaluation must be repeatable.

    Raises ConfigError for values that do not go together.
    """

    beams: int | None = None
    """Hypotheses kept for each input: 1 takes the most probable token at each step, more is beam search."""
    length_penalty: float | None = None
    """Beam search ranks hypotheses by log-probability / tokens ** this: 0 ranks by log-probability alone; higher values
    favor long answers."""
    early_stopping: Literal["false", "true", "never"] | None = None
    """When beam search ends, as in Transformers: once no hypothesis, at its present length, could get among the
    finished ones (false); once as many have finished as there are beams (true); or once none could at any length
    (never)."""
    temperature: float = 0.0
    """Above 0, tokens are drawn at random, with probabilities raised to the power of 1 / temperature."""
    top_k: int | None = None
    """Draw from this many of the most probable tokens."""
    top_p: float = 1.0
    """Draw from the fewest of the most probable tokens that have at least this probability together."""
    min_new_tokens: int | None = None
    """Minimum number of tokens of an answer, without its end token."""
    no_repeat_ngram: int | None = None
    """No sequence of this many tokens is repeated in an answer; 0 allows all."""
    repetition_penalty: float | None = None
    """Divides positive scores, and multiplies negative ones, of tokens that the text already has; 1 changes nothing."""
    banned_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated, beside those that the checkpoint bans."""
    seed: int = 0
    """Of sampling. In Python `generate` takes a key instead."""

    def __post_init__(self) -> None:
        least = {"beams": 1, "top_k": 1, "min_new_tokens": 0, "temperature": 0.0, "no_repeat_ngram": 0}
        for field, lowest in least.items():
            value = getattr(self, field)
            if value is not None and not lowest <= value < math.inf:
                raise ConfigError(f"decoding.{field} must be at least {lowest}, not {value}")
        if self.length_penalty is not None and not math.isfinite(self.length_penalty):
            raise ConfigError(f"decoding.length_penalty must be a number, not {self.length_penalty}")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(f"decoding.repetition_penalty must be a positive number, not {self.repetition_penalty}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"decoding.top_p must be in (0, 1], not {self.top_p}")
        if self.early_stopping not in (None, "false", "true", "never"):
            raise ConfigError(f"decoding.early_stopping is 'false', 'true' or 'never', not {self.early_stopping!r}")
        if self.beams is not None and self.beams > 1 and self.temperature > 0:
            raise ConfigError(
                f"decoding.temperature is {self.temperature} and decoding.beams is {self.beams}: answers are either "
                "drawn at random, with 1 beam, or searched for, at temperature 0"
            )
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            raise ConfigError("decoding.top_k and decoding.top_p are of sampling; set decoding.temperature as well")
        if self.beams == 1 and (self.length_penalty not in (None, 1) or self.early_stopping not in (None, "false")):
            raise ConfigError(
                "decoding.length_penalty and decoding.early_stopping need beam search: set decoding.beams above 1"
            )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices of a run, ensemble x data x model of them. One of the sizes may be -1: what the others leave."""

    ensemble: int = 1
    """Groups of devices that members are spread over; no group needs anything of another."""
    data: int = 1
    """Groups, within these, that the rows of a batch are spread over."""
    model: int = 1
    """Devices, within these, that the base's heads and feed-forward width are spread over (tensor parallelism)."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment; `runs/NAME/` is the record of it."""

    name: str = "experiment"
    """Name of the run, and of its folder."""
    runs: Path = Path("runs")
    """Folder of all runs, also on a bucket of Google Cloud: `gs://BUCKET/runs`."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    mesh: MeshConfig = MeshConfig()
    decoding: Decoding = Decoding()
    """Of the answers that are scored when training has ended. Validation takes the most probable token each time."""

    @property
    def folder(self) -> Path:
        return as_path(self.runs) / self.name


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the field."""


PROMPT_METHODS = ("soft_prompt", "prefix")
# Those that train copies of the base's own parameters, and add none.
REPLACING_METHODS = ("last_layers", "full")

# The lists of an ensemble, and the field that each of them is for.
ENSEMBLE_LISTS = {
    "seed": ("train", "seed"),
    "learning_rate": ("optimizer", "learning_rate"),
    "weight_decay": ("optimizer", "weight_decay"),
    "length": ("prompt", "length"),
    "init": ("prompt", "init"),
    "init_member": ("prompt", "init_member"),
    "task": ("data", "task"),
}


def members(experiment: Experiment) -> tuple[Experiment, ...]:
    """The experiment of each member: one that trains alone what the member is trained to in the ensemble.

    Raises:
      ConfigError: a list that is neither of one value nor of one for each member.
    """
    ensemble = experiment.ensemble
    lists: dict[str, tuple[Any, ...]] = {name: getattr(ensemble, name) for name in ENSEMBLE_LISTS}
    size = max(1, *map(len, lists.values())) if ensemble.size is None else ensemble.size
    if size < 1:
        raise ConfigError(f"ensemble.size must be positive, not {size}")
    for name, values in lists.items():
        if len(values) not in (0, 1, size):
            raise ConfigError(
                f"ensemble.{name} has {len(values)} values for {size} members: give {size}, or one for all of them"
            )
    if not ensemble.seed:
        lists["seed"] = tuple(range(experiment.train.seed, experiment.train.seed + size))
    alone = dataclasses.replace(experiment, ensemble=EnsembleConfig(), mesh=MeshConfig())

    def member(number: int) -> Experiment:
        result = alone
        for name, (part, field) in ENSEMBLE_LISTS.items():
            if values := lists[name]:
                value = values[number if len(values) > 1 else 0]
                replaced = dataclasses.replace(getattr(result, part), **{field: value})
                result = dataclasses.replace(result, **{part: replaced})
        return result

    return tuple(map(member, range(size)))


def settings(experiments: tuple[Experiment, ...]) -> list[dict[str, Any]]:
    """For each member, the fields in which the members differ, with its values: `{"train.seed": 1}`."""
    varied = [
        f"{part}.{field}"
        for part, field in ENSEMBLE_LISTS.values()
        if len({getattr(getattr(each, part), field) for each in experiments}) > 1
    ]
    return [{name: operator.attrgetter(name)(each) for name in varied} for each in experiments]


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings of a member in words: `seed 1, learning_rate 0.3`."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in values.items())


def load_experiment(path: Path) -> Experiment:
    """The experiment that a configuration file builds, or that a run wrote down (`config.json`).

    Raises:
      ConfigError: no such file, a file that fails, or one without an `experiment`.
    """
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    if path.suffix == ".json":
        try:
            return from_json(path.read_text())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    try:
        built = runpy.run_path(str(path)).get("experiment")
    except Exception as error:
        raise ConfigError(f"{path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(built, Experiment):
        raise ConfigError(f"{path} must define `experiment`, an Experiment; it has {type(built).__name__}")
    return _build(Experiment, dataclasses.asdict(built), "")


def to_json(experiment: Experiment) -> str:
    """The resolved configuration, as written into the run's folder."""
    return json.dumps(dataclasses.asdict(experiment), indent=2, default=str) + "\n"


def from_json(text: str) -> Experiment:
    """Reads what `to_json` wrote.

    Raises:
      ConfigError: no JSON, or an unknown field.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a configuration: {error}") from error
    return _build(Experiment, values, "")


def differences(a: dict[str, Any], b: dict[str, Any], at: str = "") -> list[str]:
    """The fields in which two configurations, as JSON objects, differ."""
    found = []
    for name in sorted(set(a) | set(b)):
        x, y = a.get(name), b.get(name)
        if isinstance(x, dict) and isinstance(y, dict):
            found += differences(x, y, f"{at}{name}.")
        elif x != y:
            found.append(f"{at}{name}")
    return found


def _build(cls: Any, values: Any, at: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"not a configuration: {at or 'the whole'} is a JSON {type(values).__name__}, not an object")
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise ConfigError(f"unknown field {at}{sorted(unknown)[0]}")
    return cls(**{name: _value(hints[name], value, f"{at}{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, at: str) -> Any:
    """A value with the type of its field. JSON has neither dataclasses, tuples nor paths; Python checks nothing."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{at}.")
    # Python makes a typing.Union, and no types.UnionType, of a Literal and None.
    for option in typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,):
        arguments = typing.get_args(option)
        match typing.get_origin(option) or option:
            case types.NoneType if value is None:
                return None
            case typing.Literal if value in arguments:
                return value
            case _ if option is Path and isinstance(value, (str, Path)):
                return as_path(value)
            case _ if option is float and type(value) in (int, float):
                return float(value)
            case _ if option in (str, int, bool) and type(value) is option:
                return value
            case builtins.tuple if isinstance(value, (list, tuple)):
                kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
                if len(kinds) == len(value):
                    return tuple(_value(kind, item, at) for kind, item in zip(kinds, value, strict=True))
    wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace("pathlib.", "")
    raise ConfigError(f"{at} must be {wanted}, not {value!r}")
