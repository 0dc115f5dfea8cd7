"""A griffe extension that shows the doctests of docstrings as blocks of code."""

import re
from typing import Any

from griffe import Extension, Object

DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?! *$) *\S.*)*", re.MULTILINE)


class Doctests(Extension):
    """Fences every doctest, which Markdown would take for nested quotes."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = DOCTEST.sub(_fenced, obj.docstring.value)


def _fenced(doctest: re.Match[str]) -> str:
    indent = doctest["indent"]
    return f"{indent}```pycon\n{doctest[0]}\n{indent}```"
