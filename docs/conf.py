"""How Sphinx makes the site of these pages: `make docs`."""

import posixpath
import re
from pathlib import Path
from typing import Any

import mim4dd

project = "mim4dd"
author = "The mim4dd authors"
release = mim4dd.__version__
html_title = f"mim4dd {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["pictures"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": "https://github.com/mim4dd/mim4dd/",
    "source_branch": "main",
    "source_directory": "docs/",
}

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# The docstrings' own order tells more than the alphabet, and types stand in the signatures.
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True

# A name that is linked to must be on some page. PyTorch's are on its own site.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|multiprocessing|pathlib|collections|functools|matplotlib)\b.*")
]

_ROOT = Path(__file__).parent.parent
_SOURCES = "https://github.com/mim4dd/mim4dd/blob/main/"
_LINK = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")


def _as_on_github(_app: object, page: str, source: list[str]) -> None:
    """Make README.md the first page, and send links that leave docs/ to the repository."""
    folder = f"docs/{posixpath.dirname(page)}"
    if page == "index":
        source[0] = (_ROOT / "README.md").read_text() + source[0]
        folder = ""
    if page.endswith("/table"):  # of the study, which links to it
        source[0] = "---\norphan: true\n---\n\n" + source[0]

    def here(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        if not path.startswith("docs/"):
            return f"]({_SOURCES}{path})"
        return f"]({posixpath.relpath(path, folder or 'docs')})"

    source[0] = _LINK.sub(here, source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _as_on_github)
