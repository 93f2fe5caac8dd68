"""The public names of `import octaskly`, for docs/reference/python.md."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec

import octaskly

SECTIONS = (
    ("Clients", ("Client", "AsyncClient")),
    (
        "What a task asks for",
        ("TaskFields", "Limits", "Requires", "Draft", "TaskFilter"),
    ),
)


def page() -> str:
    """Return a section for each public name."""
    told = {name for _, names in SECTIONS for name in names}
    rest = [name for name in octaskly.__all__ if name not in told]
    found = {name: getattr(octaskly, name) for name in rest}
    errors = [name for name, kind in found.items() if is_error(kind)]
    values = [name for name in rest if name not in errors and name[0] != "_"]
    parts = [*SECTIONS, ("Answers", tuple(values))]
    text = "".join(
        f"## {title}\n\n" + "".join(section(name) for name in names)
        for title, names in parts
    )
    return text + "## Errors\n\n" + "".join(error_lines(errors))


def is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def section(name: str) -> str:
    """Return the public parts of one class."""
    kind = getattr(octaskly, name)
    text = f"### `{name}`\n\n{prose(kind)}"
    if name == "AsyncClient":
        return text
    if issubclass(kind, msgspec.Struct) or is_typeddict(kind):
        text += fields(kind)
    return text + "".join(methods(kind))


def prose(thing: Any) -> str:
    """Return a docstring as Markdown."""
    lines = inspect.getdoc(thing) or ""
    assert lines, f"{thing} says nothing of itself"
    text = re.sub(
        r"\n\n((?:    .*\n?|\n)+)",
        lambda found: f"\n\n{code(textwrap.dedent(found[1]).strip(), 'used')}",
        lines.partition("\nArgs:")[0].partition("\nRaises:")[0],
    )
    listed = "".join(f"- {item}\n" for item in items(lines))
    return f"{text.strip()}\n\n" + (f"{listed}\n" if listed else "")


def code(text: str, how: str = "called") -> str:
    """Return a code block that is shown and not run."""
    return f"<!-- shown: how it is {how} -->\n\n```text\n{text}\n```\n\n"


def items(docstring: str) -> Iterator[str]:
    """Yield the documentation of each argument and error."""
    for title, before in (("Args", ""), ("Raises", "raises ")):
        block = re.search(rf"^{title}:\n((?:    .*\n?)+)", docstring, re.MULTILINE)
        for item in re.split(r"\n(?=\w)", inspect.cleandoc(block[1]) if block else ""):
            name, _, text = " ".join(item.split()).partition(": ")
            if name:
                names = "`, `".join(name.split(", "))
                yield f"{before}`{names}`: {text}"


def fields(kind: Any) -> str:
    """Return the fields of a value with their types."""
    rows = [
        f"| `{name}` | `{escaped(text)}` |\n" for name, text in types_of(kind).items()
    ]
    return "| Field | Type |\n| --- | --- |\n" + "".join(rows) + "\n"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def types_of(kind: Any) -> dict[str, str]:
    """Return the types of fields in source form, inherited ones too."""
    if is_typeddict(kind):
        found = {
            name: str(getattr(written, "__forward_arg__", written))
            for name, written in inspect.get_annotations(kind).items()
        }
    else:
        found = {name: said(each) for name, each in get_type_hints(kind).items()}
    for name, value in vars(kind).items():
        if isinstance(value, property) and value.fget is not None:
            found[name] = inspect.signature(value.fget).return_annotation
    return {name: text for name, text in found.items() if not name.startswith("sent_")}


def said(kind: Any) -> str:
    """Return a type in source form."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " | ".join(map(said, parts))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, parts))}]"
    if parts:
        return f"{origin.__name__}[{', '.join(map(said, parts))}]"
    return "None" if kind is NoneType else getattr(kind, "__name__", str(kind))


def methods(kind: Any) -> Iterator[str]:
    """Yield a part for each method, starting with the constructor."""
    if kind is octaskly.Client:
        yield code(signature("Client", kind.__init__))
    for name, method in vars(kind).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            yield f"#### `{name}`\n\n{code(signature(name, method))}{prose(method)}"


def signature(name: str, method: Any) -> str:
    """Return a call's signature, one parameter a line if it is long."""
    found = inspect.signature(method)
    parameters = [
        str(parameter).replace("'", "")
        for parameter in found.parameters.values()
        if parameter.name != "self"
    ]
    kinds = [p.kind for p in found.parameters.values()][1:]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        pass  # The asterisk already says that the next ones are keyword-only.
    elif inspect.Parameter.KEYWORD_ONLY in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    back = "" if name[0].isupper() else f" -> {found.return_annotation}"
    line = f"{name}({', '.join(parameters)}){back}"
    if len(line) <= 80:
        return line
    return f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){back}"


def error_lines(names: list[str]) -> Iterator[str]:
    """Yield the errors as a tree, each below its base."""
    kinds = {getattr(octaskly, name): name for name in names}

    def below(kind: type, depth: int) -> Iterator[str]:
        says = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        yield f"{'  ' * depth}- `{kinds[kind]}`: {says}\n"
        for each in kinds:
            if kind in each.__bases__:
                yield from below(each, depth + 1)

    for kind in kinds:
        if not kinds.keys() & set(kind.__bases__):
            yield from below(kind, 0)
    yield "\n"
