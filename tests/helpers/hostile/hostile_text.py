"""Class names that a terminal would obey, and what is to be seen of them; SECURITY.md has a row for each."""

from __future__ import annotations

RED, BELL, TITLE = "\x1b[31m", "\x07", "\x1b]0;owned\x07"
REVERSED, HIDDEN, C1 = "\u202e", "\u200b", "\x9b31m"
#: Case to a class name, and what is to be seen of it.
CASES = {
    "a colour sequence in a class name": (f"a{RED}b", r"a\x1b[31mb"),
    "a window title in a class name": (f"a{TITLE}b", r"a\x1b]0;owned\x07b"),
    "a bell in a class name": (f"a{BELL}b", r"a\x07b"),
    "an eight-bit control sequence in a class name": (f"a{C1}b", r"a\x9b31mb"),
    "reversed text in a class name": (f"a{REVERSED}b", r"a\u202eb"),
    "invisible characters in a class name": (f"a{HIDDEN}b", r"a\u200bb"),
    "a letter that is drawn as nothing in a class name": ("a\u3164b", r"a\u3164b"),
    "a blank that is no space in a class name": ("a\u2800b", r"a\u2800b"),
    "a private-use character in a class name": ("a\ue000b", r"a\ue000b"),
    "a carriage return in a class name": ("good\rbad", r"good\x0dbad"),
    "markup of the console in a class name": ("[red]b[/red]", "[red]b[/red]"),
}
