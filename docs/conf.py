"""The documentation site: `make docs`. Sphinx calls this file; its settings are names here.

The root of the sources is the repository, so that the pages' links to code and to data/README.md
lead somewhere on the site too: to a page, or to the file itself.
"""

from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "deflow-vision"
author = "the deflow-vision authors"
copyright = author
version = release = metadata.version("deflow-vision")

extensions = ["myst_parser", "sphinxcontrib.mermaid"]
root_doc = "docs/index"
include_patterns = ["README.md", "docs/*.md", "data/README.md"]
# Folders that are not even looked through: stores have millions of files.
exclude_patterns = [
    *(path.name for path in ROOT.iterdir() if path.name not in ("README.md", "docs", "data")),
    *(f"data/{path.name}" for path in (ROOT / "data").iterdir() if path.is_dir()),
]

myst_heading_anchors = 4  # links to headings, as GitHub names them
myst_fence_as_directive = ["mermaid"]
highlight_language = "none"  # formulas are not Python

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_extra_path = ["root"]  # index.html, which leads to the first page
html_theme_options = {"navigation_with_keys": True}
# A diagram shows as its text where the browser cannot fetch this: all else needs no network.
mermaid_version = "11.12.0"
mermaid_height = "auto"
mermaid_fullscreen = False
