"""`Method`, the interface of every method."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from prompt_jax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray

    from prompt_jax.checkpoints.load import Model
    from prompt_jax.models.delta import Delta
    from prompt_jax.models.prompt import Prompt

Trainable = Any  # nested dicts of float32 arrays
MLP_RATE = 5e-5  # for prefixes that an MLP makes (Li and Liang 2021, table 6)
FROZEN = "frozen"  # the name of a dict of parameters that training does not change


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to tune a frozen base model. The fields of a subclass are its options, the `prompt` section of a run.

    To add a method, write a subclass in its own file and add it to `prompt_jax.methods.METHODS`. Import JAX inside
    functions, so that `--help` and configuration files do not wait for it.
    """

    name: ClassVar[str]
    """The value of `prompt.method`."""
    per_task: ClassVar[bool] = False
    """Whether `apply` returns a stacked Prompt with one prompt for each task of a mixture."""
    replaces_base: ClassVar[bool] = False
    """Whether the parameters replace some of the base's, rather than add to them."""

    @property
    def stored_length(self) -> int:
        """Number of virtual tokens, or of keys and values per layer, of the stored prompt; 0 if it has none."""
        return getattr(self, "length", 0)

    @property
    def trains_virtual_tokens(self) -> bool:
        """Whether the trainable parameters are embeddings, for which `optimizer.rate_unit` embedding_rms exists."""
        return False

    @property
    def default_rate(self) -> float:
        """The absolute learning rate that `optimizer.learning_rate` None means."""
        return 1e-3

    def check(self) -> None:
        """Check rules between options. Constraints on a single option are part of its type.

        Raises:
          ConfigError: names the options, their values, and what would be right.
        """

    def initialize(
        self, key: "PRNGKeyArray", model: "Model", labels: Sequence[str] = (), *, tasks: int = 1
    ) -> Trainable:
        """Return the initial trainable parameters, in float32.

        Args:
          key: random key.
          model: the base model.
          labels: class labels of the tasks, for initialization.
          tasks: number of tasks of a mixture. Methods without `per_task` ignore it.

        Raises:
          ConfigError: an option needs something that the base model or the tasks lack, such as labels.
        """
        raise NotImplementedError

    def shapes(self, model: "Model", labels: Sequence[str] = (), *, tasks: int = 1) -> Trainable:
        """Return the shapes of what `initialize` returns, without allocating it. Arguments as for `initialize`.

        Raises:
          jax.errors.JAXTypeError: `initialize` computes with concrete arrays, so its shapes are not known before.
        """
        import jax

        # Initialization from a vocabulary or a file computes with concrete arrays. The shapes are the same.
        simple: Any = dataclasses.replace(self, **{"init": "zero"} if hasattr(self, "init") else {})
        return jax.eval_shape(lambda key: simple.initialize(key, model, labels, tasks=tasks), jax.random.key(0))

    def apply(self, trainable: Trainable, key: "PRNGKeyArray | None" = None) -> "Prompt | Delta":
        """Turn trainable parameters into a Prompt, or into a Delta of the base's weights.

        The function is pure, and is differentiated in training. A run stores its result.

        Args:
          trainable: from `initialize`, or trained from it.
          key: random key for the method's dropout; None switches dropout off.
        """
        raise NotImplementedError


def check_option(value: Any, allowed: bool, name: str, condition: str) -> None:
    """Raise ConfigError for an option that is set (not None, not empty) although its condition does not hold."""
    if value not in (None, "", ()) and not allowed:
        raise ConfigError(f"prompt.{name} needs {condition}; it is {value!r}, so leave it out")


def check_init(options: Any) -> None:
    """Check the options of initialization that prompts and prefixes share."""
    if options.init == "file" and options.init_file is None:
        raise ConfigError("prompt.init 'file' needs prompt.init_file")
    if options.init == "text" and not options.init_text.strip():
        raise ConfigError("prompt.init 'text' needs prompt.init_text")
    check_option(options.init_member, options.init == "file", "init_member", "prompt.init 'file'")
