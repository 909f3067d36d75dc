"""Loading base models from a local folder, the Hugging Face Hub, or a Python package.

model = load_model("google/t5-v1_1-small")
"""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

from prompt_jax.checkpoints.config_files import auto_config, model_config, read_config
from prompt_jax.checkpoints.fingerprint import fingerprint
from prompt_jax.checkpoints.generation_config import FILE as GENERATION_FILE
from prompt_jax.checkpoints.generation_config import read_generation
from prompt_jax.checkpoints.packaged import PACKAGED
from prompt_jax.checkpoints.t5x import open_t5x
from prompt_jax.checkpoints.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer, t5_configuration
from prompt_jax.checkpoints.weights import DTYPES, FORMATS, Shardings, assemble, open_checkpoint, shard_names
from prompt_jax.errors import CheckpointError
from prompt_jax.models import Config, family
from prompt_jax.models.fused_attention import is_fused
from prompt_jax.models.layers import Params

T5X = "t5x:"  # prefix of the folder of a T5X checkpoint
_HUB = "hf://"


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen base model.

    Attributes:
      name: as given to `load_model`, without hf://.
      revision: the commit hash on the Hub; None for a folder and for a model from a package.
      params: nested dict of arrays.
      config: the family's configuration, such as a T5Config.
      tokenizer: None if the folder has none.
      fingerprint: see `prompt_jax.checkpoints.fingerprint`.
    """

    name: str
    revision: str | None
    params: Params = dataclasses.field(repr=False)
    config: Config
    tokenizer: Tokenizer | None
    fingerprint: str


def load_model(
    name_or_path: str | Path,
    dtype: str = "float32",
    revision: str | None = None,
    *,
    local_files_only: bool = False,
    sharding: Shardings = None,
) -> Model:
    """Load a base model.

    Args:
      name_or_path: one of

        - a folder with `config.json`, weights and usually a tokenizer;
        - a name on the Hugging Face Hub, also as "hf://USER/NAME[@REVISION]". Only these files are downloaded, into the
          Hub's usual cache;
        - "demo" or "smollm2", models from Python packages (`prompt_jax.checkpoints.demo`, `.smollm2`). A folder of that
          name is "./demo";
        - "t5x:FOLDER", a T5X checkpoint (`prompt_jax.checkpoints.t5x`), with a tokenizer as `spiece.model`.
      dtype: of the parameters and the activations: "float32" or "bfloat16". "int8", "fp8" and "int4" quantize the
        layers' matrices (`prompt_jax.models.quantized`); everything else is bfloat16, including activations.
      revision: a branch, tag or commit on the Hub.
      local_files_only: use only the Hub's cache, like the environment variable HF_HUB_OFFLINE=1.
      sharding: None for the default device, one sharding for all parameters, or a function from a row of the family's
        table to its sharding, e.g. `prompt_jax.distributed.sharding.parameter_sharding(mesh)`.

    Raises:
      CheckpointError: there is no loadable model; the message says what was found and what was expected.
      MissingPackage: a package is missing, such as PyTorch for `pytorch_model.bin`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    with contextlib.ExitStack() as opened:
        config: Config
        special: dict[str, Any] = {}
        if str(name_or_path).startswith(T5X):
            folder = _expand_user(str(name_or_path).removeprefix(T5X))
            if revision is not None:
                raise CheckpointError(f"{name_or_path} is a folder, which has no revision {revision!r}")
            config, tensors = open_t5x(folder)
            hf = t5_configuration()
        else:
            name_or_path, revision = _parse_hub_name(name_or_path, revision)
            folder, revision = _locate(name_or_path, revision, local_files_only)
            raw, source = read_config(folder), str(folder / "config.json")
            hf = auto_config(raw, source)
            tensors = opened.enter_context(open_checkpoint(folder))
            config = model_config(raw, tensors, source)
            generation, special = read_generation(folder, config.vocab_size, not family(config).causal)
            config = dataclasses.replace(config, generation=generation)
        params, samples = assemble(family(config).parameters(config), tensors, dtype, sharding, source=str(folder))
    # Before generation_config.json overrides special ids: fingerprints in prompt files are based on config.json's ids.
    identity = fingerprint(config, samples)
    if family(config).causal and "eos_id" in special:
        special.setdefault("start_id", special["eos_id"])  # the separator, without a tokenizer
    # XLA cannot divide the kernel over devices. In training it is divided by hand.
    fused = sharding is None and is_fused("auto")
    config = dataclasses.replace(config, **special, fused_attention=fused)
    tokenizer = load_tokenizer(
        folder,
        hf,
        eos_id=config.eos_id,
        end_ids=config.generation.end_ids,
        pad_id=config.pad_id,
        rows=config.vocab_size,
        causal=family(config).causal,
        leading_space=family(config).leading_space,
    )
    if tokenizer is not None and tokenizer.separator:
        config = dataclasses.replace(config, start_id=tokenizer.separator[0])
    return Model(str(name_or_path), revision, params, config, tokenizer, identity)


def load_config(name_or_path: str | Path, revision: str | None = None, *, local_files_only: bool = False) -> Config:
    """Return a base model's configuration, without its weights. Arguments and errors as for `load_model`."""
    if str(name_or_path).startswith(T5X):
        return open_t5x(_expand_user(str(name_or_path).removeprefix(T5X)))[0]
    name_or_path, revision = _parse_hub_name(name_or_path, revision)
    folder, _ = _locate(name_or_path, revision, local_files_only)
    with open_checkpoint(folder) as tensors:
        return model_config(read_config(folder), tensors, str(folder / "config.json"))


# --------------------------------------------------------------------------------------------------------------
# Find or download the folder


def _parse_hub_name(name_or_path: str | Path, revision: str | None) -> tuple[str | Path, str | None]:
    """Return the name and the revision of `hf://NAME[@REVISION]`, and anything else unchanged."""
    if not str(name_or_path).startswith(_HUB):
        return name_or_path, revision
    name, _, own_revision = str(name_or_path).removeprefix(_HUB).partition("@")
    if own_revision and revision is not None and own_revision != revision:
        raise CheckpointError(f"{name_or_path}: the revision is {revision!r} too; name only one")
    return name, own_revision or revision


def _locate(name_or_path: str | Path, revision: str | None, local_files_only: bool) -> tuple[Path, str | None]:
    """Return the model's folder, and its commit if it is from the Hub."""
    if name_or_path in PACKAGED:
        return _packaged_folder(str(name_or_path)), None
    path = _expand_user(name_or_path)
    if path.is_dir():
        return path, None
    if path.is_file():
        raise CheckpointError(f"{name_or_path} is a file; give its folder, which contains config.json")
    if isinstance(name_or_path, Path) or path.is_absolute() or name_or_path.startswith((".", "~")):
        raise CheckpointError(f"{name_or_path} is not a folder. A model folder has config.json and weights.")
    return _download_model(name_or_path, revision, local_files_only)


def _packaged_folder(name: str) -> Path:
    """Return the folder of a model in `PACKAGED`. The first call converts the model."""
    if name == "demo":
        from prompt_jax.checkpoints.demo import demo_folder

        return demo_folder()
    from prompt_jax.checkpoints.smollm2 import smollm2_folder

    return smollm2_folder()


def _expand_user(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{path}: there is no such user ({error})") from error


def _download_model(name: str, revision: str | None, local_files_only: bool) -> tuple[Path, str]:
    """Download a model's files unless they are cached. Returns its folder in the cache, and its commit."""
    config = _download(name, "config.json", revision, local_files_only)
    if config is None:
        where = "in the cache" if _is_offline(local_files_only) else "on the hub"
        raise CheckpointError(_not_found(name, revision, f"its config.json is not {where}"))
    commit = config.parent.name  # .../snapshots/<commit>/config.json

    def download(file: str) -> Path | None:
        return _download(name, file, commit, local_files_only)

    for form in FORMATS:
        if download(form.file) is not None:
            break
        if (index := download(form.index_file)) is not None:
            for shard in shard_names(index):
                download(shard)  # `open_checkpoint` reports missing ones
            break
    for file in (GENERATION_FILE, *TOKENIZER_FILES):
        download(file)
    return config.parent, commit


def _download(name: str, file: str, revision: str | None, local_files_only: bool) -> Path | None:
    """Download a file unless it is cached. Returns None if the model, or offline the cache, has no such file."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision, local_files_only=local_files_only))
    except errors.LocalEntryNotFoundError as error:
        if _is_offline(local_files_only):
            return None
        raise CheckpointError(
            _not_found(name, revision, f"the hub could not be reached for {file}, which is not in the cache")
        ) from error
    except errors.EntryNotFoundError:
        return None
    except hub_errors() as error:
        raise CheckpointError(_not_found(name, revision, hub_reason(error, f"downloading {file}"))) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the error classes that huggingface_hub raises when a request fails."""
    from huggingface_hub import errors

    # ValueError for invalid names and for answers that are not JSON, RuntimeError for failed transfers.
    return errors.HTTPError, OSError, ValueError, RuntimeError


# Tokens in error messages: a header with a token, or a token alone.
_SECRET = re.compile(r"Bearer [^\s'\"]+|\b(?:hf_|api_org_)(?:oauth_)?[A-Za-z0-9]{16}[^\s'\"]*")
_LOGIN = re.compile(r"(?<=//)[^/?#\s]+@")


def without_login(text: str) -> str:
    """Remove user names and passwords from URLs; a proxy's (HF_ENDPOINT) may contain them."""
    return _LOGIN.sub("", text)


def hub_reason(error: Exception, doing: str, what: str = "model") -> str:
    """Return the reason why a request to the Hub failed, in one line, without tokens and passwords.

    Args:
      error: one of `hub_errors`.
      doing: the name of the request in the message, e.g. "downloading config.json".
      what: the kind of the requested item: "model" or "repository".
    """
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # from an upload
        error = error.__cause__
    message = without_login(_SECRET.sub("(a token)", " ".join(str(error).split())))
    message = re.sub(r" For more information check: \S+", "", message)  # an explanation of HTTP status codes
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "its owners grant access by request; ask on its page, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no such {what}, or it is private and you are not logged in (`hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the {what} exists, but not that revision"
    if isinstance(error, errors.HFValidationError):
        return f"it is no valid name on the hub ({message})"
    if status == 401:
        return f"the hub does not know the token that you are logged in with; log in again (`hf auth login`): {message}"
    if status == 403:
        return (
            "the account or the token that you are logged in with may not do that; log in with one that may "
            f"(`hf auth login`): {message}"
        )
    if isinstance(error, errors.HTTPError) and not isinstance(error, errors.HfHubHTTPError):
        return f"the hub could not be reached, or broke off: {doing} failed: {message}"
    return f"{doing} failed: {message}"


def _is_offline(local_files_only: bool) -> bool:
    from huggingface_hub import constants

    return local_files_only or constants.HF_HUB_OFFLINE


def _not_found(name: str, revision: str | None, reason: str) -> str:
    at = "" if revision is None else f" at revision {revision!r}"
    return (
        f"{name!r} is not a folder here, and could not be loaded from the Hugging Face hub{at}: {reason}. "
        "Give the path of a folder with config.json and weights, a full name like 'google/t5-v1_1-small', 'smollm2' "
        "or 'demo'."
    )
