"""Control tokens in text: tokens in a template, plain text in data.

A template may contain control tokens of the model, such as `<|user|>` or `<mask>`. The same characters in data must not
become a token, or data could imitate the template. So control tokens in templates are marked: they are enclosed in two
Unicode noncharacters, which are removed from data. `prompt_jax.checkpoints.tokenizer` reads only marked tokens as
control tokens.
"""

import re

OPEN, CLOSE = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")


def mark(token: str) -> str:
    """Return a control token with the marks around it."""
    return f"{OPEN}{token}{CLOSE}"


def remove_marks(text: str) -> str:
    """Return the text without marks, as it is displayed and as it may occur in data."""
    return text.replace(OPEN, "").replace(CLOSE, "")


def keep_marks(tokens: frozenset[str], text: str) -> str:
    """Return the text with marks around these tokens only. Other marked text becomes plain text."""
    if OPEN not in text and CLOSE not in text:
        return text
    parts = _MARKED.split(text)  # plain, marked, plain, ...
    return "".join(
        mark(part) if place % 2 and part in tokens else remove_marks(part) for place, part in enumerate(parts)
    )
