"""Hooks of mkdocs.yml: pages that lie outside docs/ come into the site, and links lead to them or to the repository.

The Markdown files stay as they are: README.md has absolute links, pages of docs/ have relative ones.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Files outside docs/ -> their pages.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "results/README.md": "results.md",
}
LINK = re.compile(r"\]\(([^()\s]+)\)")


def on_config(config: Any) -> Any:
    """Add the pages that mkdocs.yml does not name, so that none is missing from the menu."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    others = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in named)
    if others:
        config.nav.append({"More": others})
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    sources = {target: source for source, target in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda match: f"]({target_of(match[1], source, config['repo_url'])})", markdown)


def target_of(link: str, source: str, base: str) -> str:
    """Return where a link of a file leads from its page in the site.

    >>> target_of("../scripts/gauge.py", "docs/method.md", "https://x/y")
    'https://x/y/blob/main/scripts/gauge.py'
    >>> target_of("https://x/y/blob/main/docs/method.md#skipping", "README.md", "https://x/y")
    'method.md#skipping'
    >>> target_of("../results/README.md", "docs/benchmarks.md", "https://x/y")
    'results.md'
    """
    raw = base.replace("github.com", "raw.githubusercontent.com") + "/main/"
    path, mark, anchor = link.partition("#")
    for prefix in (f"{base}/blob/main/", f"{base}/tree/main/", raw):
        if path.startswith(prefix):
            path = path.removeprefix(prefix)
            break
    else:
        if not path or "://" in path or path.startswith("mailto:"):
            return link
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if path in PAGES:
        return f"{PAGES[path]}{mark}{anchor}"
    if path.startswith("docs/"):
        return f"{path.removeprefix('docs/')}{mark}{anchor}"
    kind = "blob" if "." in posixpath.basename(path) or path == "LICENSE" else "tree"
    return f"{base}/{kind}/main/{path}{mark}{anchor}"
