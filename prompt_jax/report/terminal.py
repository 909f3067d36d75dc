"""Text on terminals, which obey control characters."""

import unicodedata


def escape_control_characters(text: str) -> str:
    r"""Escape the characters of a text that a terminal would interpret or hide, such as `\x1b`.

    Line feeds stay, as do spaces of all widths and the joiners of emoji and of Persian and Indic scripts.
    """
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in "\n\u200c\u200d" or unicodedata.category(character) == "Zs"
