"""The model card of a repository with prompts: a description, and code that uses them."""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_jax.checkpoints.load import T5X
from prompt_jax.checkpoints.packaged import PACKAGED
from prompt_jax.prompt_files.card import facts, indented_block, quote, yaml_header
from prompt_jax.prompt_files.hub import FILE, HubName
from prompt_jax.prompt_files.metadata import PromptMetadata, find_task_mismatch
from prompt_jax.prompt_files.peft import VERSIONS_NOTE
from prompt_jax.prompt_files.peft_tensors import TENSORS

# Marks the cards that a push may overwrite.
MARK = "<!-- prompt-jax push overwrites this card. Delete this line to keep your own version. -->"
OLD_MARK = "<!-- prompt-jax push writes this card, and writes it anew."  # of earlier versions

_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_ONE_LINE = re.compile(r"[\w./:@+~ -]+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class CardBase:
    """The base on a card: its name, its commit on the Hub if any, and whether it is causal (None if unknown).

    If it is causal, also the ids of the tokens before a text (`start`) and of the separator between source and target,
    and the `leading_space` of its tokenizer.
    """

    name: str
    revision: str | None
    causal: bool | None
    separator: int | None = None
    start: tuple[int, ...] = ()
    leading_space: bool = False

    @property
    def on_hub(self) -> bool:
        """Whether the base is on the Hub. A folder has no commit."""
        if self.name in PACKAGED or not _ON_HUB.fullmatch(self.name):
            return False
        return self.revision is not None or not Path(self.name).exists()


@dataclasses.dataclass(frozen=True)
class CardMember:
    """A prompt on a card: the shapes of its parts, and its metadata."""

    shapes: Mapping[str, Sequence[int]]
    metadata: PromptMetadata


def repository_card(name: HubName, members: Sequence[CardMember], base: CardBase | None, *, adapters: bool) -> str:
    """Return the card of a prompt or an ensemble.

    Args:
      name: the destination of the push.
      members: one prompt, or the members of an ensemble.
      base: the base, if known.
      adapters: whether PEFT adapters are pushed too, for an ensemble in `member_0` and so on.
    """
    first = members[0]
    what = "A prompt" if len(members) == 1 else f"{len(members)} prompts"
    kind = "prompt-tuning" if set(first.shapes) == {"encoder_tokens"} else "prefix-tuning"
    if any(name.startswith("base/") for name in first.shapes):
        kind = "adapter" if any("adapter" in name.split("/") for name in first.shapes) else "fine-tuning"
    causal = base is not None and base.causal is True
    on_hub = base.name if base is not None and base.on_hub else None
    lines = [yaml_header(on_hub, adapter=adapters, causal=causal, tags=[kind, "prompt_jax"])]
    lines += ["", MARK, "", f"# {what} for a frozen language model", ""]
    lines += [
        f"Trained with prompt_jax. `{FILE}` holds the trained parameters; the base model is unchanged and not included."
    ]
    if adapters:
        same = "`member_0` and so on are PEFT adapters" if len(members) > 1 else f"`{TENSORS}` is a PEFT adapter"
        lines += [f"{same} with the same parameters."]
    if base is not None and not on_hub and base.name not in PACKAGED:
        lines += ["The base is a folder on the author's machine: use your own path in its place."]
    lines += ["", *_facts(members, base)]
    lines += ["", "## With prompt_jax", "", *_with_prompt_jax(name, members, base)]
    if adapters and base is not None and not base.name.startswith(T5X):  # Transformers cannot read T5X
        lines += ["", "## With PEFT", "", VERSIONS_NOTE, "", *_with_peft(name, members, base)]
    return "\n".join(lines) + "\n"


def _facts(members: Sequence[CardMember], base: CardBase | None) -> list[str]:
    """Return the facts that all members share, then one line for each member with the facts that differ."""
    of_base: dict[str, Any] = {} if base is None else {"base": base.name, "revision": base.revision}
    each = [
        {"method": member.metadata.method, "shapes": dict(member.shapes), "placement": member.metadata.placement}
        | facts(member.metadata)
        | {"settings": dict(member.metadata.settings)}
        for member in members
    ]
    same = {name: value for name, value in each[0].items() if all(one.get(name) == value for one in each)}
    lines = indented_block(of_base | same)
    for number, one in enumerate(each):
        rest = {name: value for name, value in one.items() if name not in same}
        lines += indented_block({f"member {number}": rest})
    return lines


def _with_prompt_jax(name: HubName, members: Sequence[CardMember], base: CardBase | None) -> list[str]:
    ours, several = str(name), len(members) > 1
    if base is None:
        return _fenced("bash", ["prompt-jax inspect " + shlex.quote(ours)]) + [
            "",
            "The prompt does not record its base: give it with `--model`.",
        ]
    columns = _columns(members)
    row = dict.fromkeys(columns, "a text")
    words = "a text" if len(columns) == 1 else json.dumps(row, ensure_ascii=False)
    file = shlex.quote(ours)
    about = "The members answer by majority vote. The answer of one member:"
    if find_task_mismatch([member.metadata for member in members]) is not None:
        short_name = name.repository.rpartition("/")[2]
        words = json.dumps({"prompt": f"{short_name}/0", **row}, ensure_ascii=False)
        file = f"--prompts {shlex.quote(f'{short_name}={ours}')}"
        about = (
            f"The members are for different tasks and do not vote: each input names one, `{short_name}/0` to "
            f"`{short_name}/{len(members) - 1}`, and has the columns of its template. `prompt-jax export --member 0` "
            "writes one to a file. In Python:"
        )
    model = f"--model {_word(base.name, 'NAME')}"
    model += f" --revision {_word(base.revision, 'REVISION')}" if base.revision else ""
    command = f"prompt-jax predict {file} {shlex.quote(words)} {model}"
    of_base = quote(base.name) + (f", revision={quote(base.revision)}" if base.revision else "")
    ids = f"model.tokenizer.input_ids({_text(members)})"
    if base.causal is not False:  # causal or unknown
        ids = f"[*{ids}, *model.tokenizer.separator]"
    code = [
        "import numpy as np",
        "import prompt_jax",
        "",
        f"model = prompt_jax.load_model({of_base})",
        f"prompt = prompt_jax.load_prompt({quote(ours)}, model)",
        "",
        f"ids = {ids}",
        'batch = {"inputs": np.array([ids], np.int32), "inputs_mask": np.ones((1, len(ids)), bool)}',
        *([f'batch["prompt_ids"] = np.array([0], np.int32)  # of {len(members)} members'] if several else []),
        f"tokens = prompt_jax.generate(model.params, model.config, batch, prompt, max_new_tokens={_length(members)})",
        "print(model.tokenizer.decode(np.asarray(tokens)[0]))",
    ]
    return [*_fenced("bash", [command]), *(["", about] if several else []), "", *_fenced("python", code)]


def _with_peft(name: HubName, members: Sequence[CardMember], base: CardBase) -> list[str]:
    several = len(members) > 1
    kind = "AutoModelForCausalLM" if base.causal else "AutoModelForSeq2SeqLM"
    of_base = quote(base.name) + (f", revision={quote(base.revision)}" if base.revision else "")
    imports = ["from peft import PeftModel", f"from transformers import {kind}, AutoTokenizer"]
    if base.name in PACKAGED:
        function = f"{base.name}_folder"
        imports, of_base = [*imports, f"from prompt_jax.checkpoints.{base.name} import {function}"], f"{function}()"
    folder = name.inside("member_0") if several else name.folder
    where = quote(name.repository)
    where += f", subfolder={quote(folder)}" if folder else ""
    where += f", revision={quote(name.revision)}" if name.revision else ""
    inputs = [f'inputs = tokenizer({_text(members)}, return_tensors="pt")']
    if base.causal:  # as in `Tokenizer.input_ids` and `Tokenizer.separator`
        imports = ["import torch", *imports]
        text = _text(members, start=" " * base.leading_space)
        comment = f"  # {'a start token, ' * bool(base.start)}the text, the separator; then the answer"
        inputs = [
            f"ids = tokenizer({text}, add_special_tokens=False).input_ids",
            f"ids = [{', '.join([*map(str, base.start), '*ids', str(base.separator)])}]{comment}",
            'inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}',
        ]
    code = [
        *imports,
        "",
        f"base = {kind}.from_pretrained({of_base})",
        f"model = PeftModel.from_pretrained(base, {where})" + (f"  # of {len(members)} members" if several else ""),
        f"tokenizer = AutoTokenizer.from_pretrained({of_base})",
        *inputs,
        f"tokens = model.generate(**inputs, max_new_tokens={_length(members)})",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
    ]
    return _fenced("python", code)


def _word(text: str, placeholder: str) -> str:
    """Return a text quoted for a shell, or a placeholder if it should not be copied into a command."""
    return shlex.quote(text) if _ONE_LINE.fullmatch(text) else placeholder


def _fenced(language: str, lines: Sequence[str]) -> list[str]:
    return [f"```{language}", *lines, "```"]


def _columns(members: Sequence[CardMember]) -> tuple[str, ...]:
    task_format = members[0].metadata.format
    return ("text",) if task_format is None else task_format.columns


def _text(members: Sequence[CardMember], start: str = "") -> str:
    """Return an input as a Python literal: the template, filled with a text for each column."""
    task_format = members[0].metadata.format
    return quote(
        start + ("a text" if task_format is None else task_format.render(dict.fromkeys(task_format.columns, "a text")))
    )


def _length(members: Sequence[CardMember]) -> int:
    task_format = members[0].metadata.format
    return 16 if task_format is None else task_format.target_length
