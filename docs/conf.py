"""The documentation site: the Markdown of this repository, and an API reference from the docstrings.

    make docs

builds it into `build/docs` from the repository's root, so that links between README, pages and plans hold.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import expunge

project = "expunge"
author = "The expunge developers"
copyright = "The expunge developers"
release = version = expunge.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "plans/*.md", "checker/README.md"]
exclude_patterns = ["build", "docs/conf.py"]
html_theme = "furo"
html_title = "expunge"
myst_heading_anchors = 4
#: Fields of several dataclasses have the same name: a bare name of one is no link.
suppress_warnings = ["myst.header", "ref.python"]
nitpicky = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "imported-members": True, "undoc-members": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False


def plain_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: escape what reStructuredText would read as markup."""
    example = False
    for number, line in enumerate(lines):
        if line.lstrip().startswith(">>>"):
            example = True
        if example:
            example = bool(line.strip())
            continue
        parts = re.split(r"(`+[^`]+`+)", line)
        for place, part in enumerate(parts):
            if part.startswith("`"):
                parts[place] = f"``{part.strip('`')}``"
            else:
                parts[place] = re.sub(r"([*|\\])", r"\\\1", re.sub(r"(?<!\])_(?=\W|$)", r"\\_", part))
        lines[number] = "".join(parts)


def skip_fields(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Fields without a value are described under `Attributes` already."""
    return True if type(thing).__module__.startswith("sphinx.") or thing is None else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)
