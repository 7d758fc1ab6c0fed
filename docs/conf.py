"""Configuration of the documentation site; ``sphinx-build -W docs build/site`` builds it, without a network.

Pages are Markdown (MyST) whose links also work between the files of the repository. Docstrings are read from the
installed package. Notebooks are stored without outputs and executed by the build, so what the pages show was computed
by the version that they describe.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())

project = CITATION["title"]
author = CITATION["authors"][0]["name"]
project_copyright = author
version = release = CITATION["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Markdown
myst_heading_anchors = 4  # links to headings, with the anchors of repository pages
myst_enable_extensions = ["colon_fence"]

# Notebooks
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"

# Docstrings
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
maximum_signature_line_length = 88

# Pages
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = project
html_copy_source = False
html_show_sourcelink = False
html_theme_options: dict[str, Any] = {"navigation_with_keys": True}
pygments_style = "tango"
pygments_dark_style = "monokai"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the kernels that execute notebooks


def shorten_module_docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Leave out the list of private files from the docstring of a room."""
    if what == "module":
        start = next((number for number, line in enumerate(lines) if line.startswith("Files, each")), len(lines))
        del lines[start:]


def skip_hooks(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Leave out the hooks of the callback, which Lightning calls; None leaves the decision to Sphinx."""
    return True if getattr(obj, "__qualname__", "").startswith("FailureModes.") and hasattr(Callback, name) else None


def setup(app: Sphinx) -> None:
    """Register what happens to docstrings."""
    app.connect("autodoc-skip-member", skip_hooks)
    app.connect("autodoc-process-docstring", shorten_module_docstring)
