"""Text from files, made fit for a terminal: what would move the cursor, hide or reorder text is shown by its number."""

from __future__ import annotations

import re
import unicodedata

_JOINERS = "\u200c\u200d"  # part of words and of symbols in many scripts; they move nothing
_SUSPECT = re.compile(r"[^\x20-\x7e]")


def _shown(found: re.Match[str]) -> str:
    character = found.group()
    if character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str, *, lines: bool = True) -> str:
    """The text with control, formatting (bidirectional, invisible) and surrogate characters as `\\x1b`, `\\u202e`.

    Args:
        text: any text.
        lines: keep line feeds and tabs, for text that is made of lines; not for a name or an id.
    """
    if not lines:
        return _SUSPECT.sub(_shown, text)
    return re.sub(r"[^\x20-\x7e\n\t]", _shown, text)
