"""Build hooks: LaTeX in pages and docstrings becomes MathML, which browsers draw without any script.

`pymdownx.arithmatex` marks ``$...$`` and ``$$...$$`` in Markdown. Docstrings use the Sphinx role and
directive for formulas, which editors show well; `DocstringMath` turns them into the former. A formula that
cannot be converted is a warning, which stops a strict build.
"""

from __future__ import annotations

import html
import logging
import re

import griffe
from latex2mathml.converter import convert

__all__ = ["DocstringMath", "example_section", "on_page_content", "sphinx_to_dollars", "to_mathml"]

log = logging.getLogger("mkdocs.hooks.mathml")

_MARKED = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
_ROLE = re.compile(r":math:`([^`]+)`")
_DIRECTIVE = re.compile(r"^( *)\.\. math::[ ]*([^\n]*(?:\n(?:[ ]*(?=\n|\Z)|\1 +[^\n]*))*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
# The converter leaves no space between the name of a function and its argument.
_OPERATOR = re.compile(r"(<mi>(?:log|exp|min|max|det)</mi>)(?!<mo)")


def sphinx_to_dollars(text: str) -> str:
    """A docstring with its Sphinx formulas between dollar signs."""
    text = _DIRECTIVE.sub(lambda m: f"{m[1]}$$ {' '.join(m[2].split())} $$\n", text)
    return _ROLE.sub(lambda m: f"${' '.join(m[1].split())}$", text)


def to_mathml(latex: str, *, display: bool) -> str:
    """One formula as MathML; what is not understood is shown as it is written, with a warning."""
    source = html.unescape(latex).strip()
    try:
        result = convert(source, display="block" if display else "inline")
    except Exception as error:  # the converter has a dozen unrelated exceptions
        log.warning("cannot convert the formula %r: %s", source, type(error).__name__)
        return f"<code>{html.escape(source)}</code>"
    if unknown := re.search(r">(\\[a-zA-Z]+)<", result):
        log.warning("unknown command %s in the formula %r", unknown[1], source)
    return _OPERATOR.sub(r'\1<mspace width="0.167em" />', result)


def example_section(text: str) -> str:
    """A docstring whose section "Example:" has the plural name that is parsed as code; any other is drawn as prose."""
    return _EXAMPLE.sub("Examples:", text)


class DocstringMath(griffe.Extension):
    """Rewrites formulas and examples of every docstring before Markdown sees them."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called once per module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = example_section(sphinx_to_dollars(obj.docstring.value))


def on_page_content(content: str, **_: object) -> str:
    """Replace all formulas of a rendered page."""
    return _MARKED.sub(lambda m: to_mathml(m[2], display=m[1] == "div"), content)
