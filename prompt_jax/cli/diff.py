"""`prompt-jax diff`."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from prompt_jax.cli.common import choose_members, print_escaped
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import Activity


@dataclasses.dataclass(frozen=True)
class Diff:
    """Compare two prompts or two configurations.

    The exit status is that of diff(1): 0 if they are equal, 1 if they differ, 2 if they cannot be compared.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "prompt-jax diff runs/demo/best.npz runs/demo/last.npz",
        "prompt-jax diff configs/demo.py runs/demo",
    )

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """Prompt file, or configuration: a .py or .json file, or the folder of a run. The folder stands for its best prompt
    if the other is a prompt, and with --member."""
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """Prompt file or configuration to compare with A."""
    member: int | None = None
    """Compare only this member of each ensemble, numbered from 0."""


class NotComparable(UserError):
    """One of the two cannot be read, or they are of different kinds."""

    exit_status = 2


def run(args: Diff) -> int:
    try:
        a, b = (_config_file(path) for path in (args.a, args.b))
        if a is not None and b is not None and args.member is None:
            return _configs(args, a, b)
        for config, path, other in ((a, args.a, args.b), (b, args.b, args.a)):
            if config == path:
                raise NotComparable(f"{config} is a configuration and {other} is not; name two of a kind")
        return _prompts(args)
    except FileNotFoundError as error:
        raise NotComparable(f"no such file: {error.filename}") from error
    except OSError as error:
        raise NotComparable(f"{error.filename}: {error.strerror or error}") from error
    except (UserError, UnicodeError) as error:
        raise NotComparable(str(error)) from error


def _config_file(path: Path) -> Path | None:
    """Return the file of a configuration or of a run's folder; None for anything else."""
    if path.suffix in (".py", ".json"):
        return path
    config = path / "config.json"
    return config if config.is_file() and not (path / "adapter_config.json").exists() else None


def _configs(args: Diff, a: Path, b: Path) -> int:
    from prompt_jax.experiment import load_experiment
    from prompt_jax.inspection.difference import config_lines

    lines = config_lines(load_experiment(a), load_experiment(b))
    if not lines:
        print_escaped(f"{args.a} and {args.b}: the same")
        return 0
    print_escaped("\n".join([f"{args.a} and {args.b}: {len(lines)} fields differ", *lines]))
    return 1


def _prompts(args: Diff) -> int:
    with Activity("reading prompts"):
        from prompt_jax.ensembles.members import read_members
        from prompt_jax.inspection.difference import member_lines

        files = [read_members([path]) for path in (args.a, args.b)]
    several = any(len(members) > 1 for members in files)  # then the other may be a single prompt
    chosen = [choose_members(members, None if several and len(members) == 1 else args.member) for members in files]
    a, b = ([(each.prompt, each.metadata) for each in members] for members in chosen)
    status = 0
    for name, lines in member_lines(a, b):
        title = f"{args.a} and {args.b}{f', {name}' if name else ''}:{'' if lines else ' identical'}"
        print_escaped("\n".join([title, *lines]))
        status = max(status, int(bool(lines)))
    return status
