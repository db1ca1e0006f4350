"""The code blocks of the documentation, which tests run."""

import re

from tests.support.servers import ROOT


def blocks(page: str, language: str = "python") -> list[str]:
    """The blocks of a page, which is given by its path in the project."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def needs_a_host(block: str) -> bool:
    """Whether a block needs a framework that only `make compat` installs."""
    return re.search(r"^from (django|litestar|quart)\b", block, re.MULTILINE) is not None
