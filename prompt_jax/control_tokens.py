"""Control tokens in text: where a template has one it is a token, and in a user's data it is plain text.

A template may contain control tokens of the model, such as `<|user|>` or `<mask>`. The same characters in a row of data
must not become a token, or data could imitate the template. So control tokens of templates are marked with two Unicode
noncharacters, which are removed from data, and `prompt_jax.checkpoints.tokenizer` reads only marked tokens as tokens.
"""

import re

OPEN, CLOSE = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")


def mark(token: str) -> str:
    """A control token, marked so that the tokenizer reads it as one."""
    return f"{OPEN}{token}{CLOSE}"


def unmarked(text: str) -> str:
    """The text without any marks: what a person sees, and what data may contain."""
    return text.replace(OPEN, "").replace(CLOSE, "")


def keep_marks_of(tokens: frozenset[str], text: str) -> str:
    """The text with the marks of these tokens only; other marked text becomes plain text."""
    if OPEN not in text and CLOSE not in text:
        return text
    parts = _MARKED.split(text)  # plain, marked, plain, ...
    return "".join(mark(part) if place % 2 and part in tokens else unmarked(part) for place, part in enumerate(parts))
