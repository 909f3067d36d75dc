"""What no run could use, refused before anything is loaded."""

import dataclasses
import math
from pathlib import Path

from prompt_jax.config.prompt import PromptConfig
from prompt_jax.errors import ConfigError, UserError
from prompt_jax.experiment import ENSEMBLE_LISTS, PROMPT_METHODS, Experiment, members
from prompt_jax.storage.paths import parse_path

# The methods that an option is for alone.
_METHODS_OF = {
    **dict.fromkeys(("sites", "dropout", "shift_positions", "tie_layers"), ("prefix",)),
    **dict.fromkeys(("init_text", "init_file", "init_member"), PROMPT_METHODS),
    **dict.fromkeys(("adapter", "adapter_width", "adapter_share"), ("adapter",)),
    **dict.fromkeys(("per_task", "task_length", "init_labels"), ("soft_prompt",)),
    "layers": ("last_layers",),
}


def check(experiment: Experiment) -> None:
    """Refuses values that no run could use.

    Raises:
      ConfigError: naming the field, its value and what would be right.
    """
    alone = members(experiment)
    if experiment.ensemble.group is not None and experiment.ensemble.group < 1:
        raise ConfigError(f"ensemble.group must be positive, not {experiment.ensemble.group}")
    for name, (part, _) in ENSEMBLE_LISTS.items():
        if part == "prompt" and getattr(experiment.ensemble, name):
            _check_method(f"ensemble.{name}", PROMPT_METHODS, experiment.prompt.method)
    mesh = dataclasses.asdict(experiment.mesh)
    for field, size in mesh.items():
        if size < 1 and size != -1:
            raise ConfigError(f"mesh.{field} must be positive, or -1 for all devices that are left, not {size}")
    if len(rest := [field for field, size in mesh.items() if size == -1]) > 1:
        raise ConfigError(f"mesh.{rest[0]} and mesh.{rest[1]} are both -1, and only one can be what is left")
    tests = experiment.data.test_tasks
    if repeated := (set(tests) & {member.data.task for member in alone}) | {n for n in tests if tests.count(n) > 1}:
        name = sorted(map(str, repeated))[0]
        raise ConfigError(f"data.test_tasks names {name} again: a task that is trained on is tested on anyway")
    for number, member in enumerate(alone):
        try:
            _check_alone(member)
        except ConfigError as error:
            raise ConfigError(f"{error} (member {number})" if len(alone) > 1 else str(error)) from None


def _check_method(option: str, methods: tuple[str, ...], method: str) -> None:
    """Refuses an option that is given for a method that it is not of."""
    if method not in methods:
        which = " or ".join(map(repr, methods))
        raise ConfigError(f"{option} is of prompt.method {which}, and it is {method!r}; leave it out")


def _check_alone(experiment: Experiment) -> None:
    train, prompt, data, optimizer = experiment.train, experiment.prompt, experiment.data, experiment.optimizer
    if experiment.name in ("", "..") or experiment.name != Path(experiment.name).name:
        raise ConfigError(f"name is a folder's name without a path, not {experiment.name!r}")
    try:
        parse_path(experiment.runs)
    except UserError as error:
        raise ConfigError(f"runs: {error}") from error
    positive = {
        "prompt.length": prompt.length,
        "prompt.task_length": prompt.task_length,
        "prompt.init_vocab": prompt.init_vocab,
        "prompt.mlp_width": prompt.mlp_width,
        "prompt.layers": prompt.layers,
        "prompt.adapter_width": prompt.adapter_width,
        "prompt.adapter_share": prompt.adapter_share,
        "optimizer.learning_rate": optimizer.learning_rate,
        "optimizer.clip_norm": optimizer.clip_norm,
        "train.steps": train.steps,
        "train.epochs": train.epochs,
        "train.batch_size": train.batch_size,
        "train.accumulate": train.accumulate,
        "train.eval_every": train.eval_every,
        "train.eval_batch_size": train.eval_batch_size,
        "train.eval_examples": train.eval_examples,
        "train.test_examples": train.test_examples,
        "train.patience": train.patience,
        "train.checkpoint_every": train.checkpoint_every,
        "train.keep_checkpoints": train.keep_checkpoints,
        "train.log_every": train.log_every,
        "data.input_length": data.input_length,
        "data.target_length": data.target_length,
        "data.buckets": data.buckets,
        "data.train_examples": data.train_examples,
    }
    for field, value in positive.items():
        if value is not None and not value > 0:  # said so that NaN fails
            raise ConfigError(f"{field} must be positive, not {value}")
        if value == math.inf:
            raise ConfigError(f"{field} must be finite, and is {value}")
    not_negative = {
        "train.seed": train.seed,
        "data.subset_seed": data.subset_seed,
        "train.z_loss": train.z_loss,
        "optimizer.warmup_steps": optimizer.warmup_steps,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.decay_rate": optimizer.decay_rate,
    }
    for field, value in not_negative.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{field} must not be negative, and is {value}")
    for field, value in {"optimizer.beta1": optimizer.beta1, "optimizer.beta2": optimizer.beta2}.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{field} must be in [0, 1), not {value}")
    if optimizer.decay_offset > 0:
        raise ConfigError(f"optimizer.decay_offset must be zero or negative, not {optimizer.decay_offset}")
    if not -math.inf < prompt.init_range[0] < prompt.init_range[1] < math.inf:
        raise ConfigError(f"prompt.init_range goes from the lower to the higher value, not {prompt.init_range}")
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"train.accumulate must divide train.batch_size: {train.batch_size} examples cannot be processed "
            f"in {train.accumulate} equal parts"
        )
    if not 0 <= train.dropout_rate < 1:
        raise ConfigError(f"train.dropout_rate must be in [0, 1), not {train.dropout_rate}")
    if train.seed >= 2**63:
        raise ConfigError(f"the seed must be below 2**63, and is {train.seed}")
    if not 0 <= prompt.dropout < 1:
        raise ConfigError(f"prompt.dropout must be in [0, 1), not {prompt.dropout}")
    if prompt.mlp_layers not in (1, 2):
        raise ConfigError(f"prompt.mlp_layers must be 1 or 2, not {prompt.mlp_layers}")
    if len(set(prompt.sites)) != len(prompt.sites):
        raise ConfigError(f"prompt.sites names {prompt.sites} with one of them twice")
    if prompt.mlp_layers != 1 and prompt.mlp_width is None:
        raise ConfigError("prompt.mlp_layers is of the MLP that prompt.mlp_width asks for; give both, or neither")
    if prompt.init in ("text", "file"):
        _check_method(f"prompt.init {prompt.init!r}", PROMPT_METHODS, prompt.method)
    for option in dataclasses.fields(PromptConfig):
        if getattr(prompt, option.name) != option.default:
            _check_method(f"prompt.{option.name}", _METHODS_OF.get(option.name, (prompt.method,)), prompt.method)
    if prompt.adapter_share is not None and not prompt.adapter_share < 1:
        raise ConfigError(f"prompt.adapter_share must be below 1, not {prompt.adapter_share}")
    if prompt.adapter_share is not None and prompt.adapter_width != PromptConfig.adapter_width:
        raise ConfigError(
            f"prompt.adapter_share is {prompt.adapter_share} and prompt.adapter_width is {prompt.adapter_width}: give "
            "one of them"
        )
    if prompt.method == "prefix" and prompt.init in ("vocab", "labels"):
        raise ConfigError(
            f"prompt.init {prompt.init!r} is of virtual tokens; a prefix takes uniform, normal, zero, text or file"
        )
    if prompt.tie_layers and prompt.sites != ("decoder_self",):
        found = " and ".join(prompt.sites) or "all that there are"
        raise ConfigError(f"prompt.tie_layers is of prompt.sites decoder_self alone, and they are {found}")
    if prompt.tie_layers and prompt.init == "text":
        raise ConfigError(
            "prompt.init 'text' gives layers activations of their own, which prompt.tie_layers cannot have"
        )
    if prompt.init == "zero" and prompt.mlp_width is not None and prompt.method == "prefix":
        raise ConfigError("prompt.init 'zero' is not for the table of an MLP, whose rows would stay the same")
    if prompt.init == "file" and prompt.init_file is None:
        raise ConfigError("prompt.init 'file' needs prompt.init_file")
    if prompt.init_member is not None and (prompt.init != "file" or prompt.init_member < 0):
        raise ConfigError(
            f"prompt.init_member is the number, from 0, of a prompt in the file of prompt.init 'file'; it is "
            f"{prompt.init_member}, and prompt.init is {prompt.init!r}"
        )
    if prompt.init == "text" and not prompt.init_text.strip():
        raise ConfigError("prompt.init 'text' needs prompt.init_text")
    if prompt.init_labels and prompt.init != "labels":
        raise ConfigError(f"prompt.init_labels needs prompt.init 'labels', and it is {prompt.init!r}")
    if not all(word.strip() for word in prompt.init_labels):
        raise ConfigError(f"prompt.init_labels has an empty word: {list(prompt.init_labels)}")
    if prompt.task_length is not None and prompt.per_task != "concatenate":
        raise ConfigError(f"prompt.task_length is of prompt.per_task 'concatenate', and it is {prompt.per_task!r}")
    if data.task is None and (prompt.per_task or data.task_names):
        which = "prompt.per_task" if prompt.per_task else "data.task_names"
        raise ConfigError(f"{which} is of tasks with a name; give data.task, and no files")
    if (data.task is None) == (data.train is None and data.test is None and data.validation is None):
        raise ConfigError(
            "give either data.task, or files: data.train and, if there are any, data.validation, data.test"
        )
