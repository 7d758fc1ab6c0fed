"""Signatures and docstrings of methods, read from source files without importing them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method.

    Attributes:
        name: Its name.
        annotation: Its annotation as written, or "".
        default: Its default as written; None if the parameter is required.
        text: What the docstring says about it.
    """

    name: str
    annotation: str = ""
    default: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Method:
    """A method: its parameters without ``self``, and its docstring without the sections."""

    parameters: tuple[Parameter, ...]
    text: str = ""


def package_file(package: str, name: str) -> Path:
    """Return the path of a file of a package, which is found but not imported.

    Raises:
        FileNotFoundError: There is no such package.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(package)
    return Path(spec.origin).parent / name


@cache
def methods_in(path: Path, class_name: str) -> dict[str, Method]:
    """Return the methods of a class by name, or of all functions of a module if the class name is empty.

    Raises:
        OSError: The file cannot be read.
        SyntaxError: It is not Python.

    >>> [one.name for one in methods_in(Path(__file__), "")["methods_in"].parameters]
    ['path', 'class_name']
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    body = bodies[0] if bodies else tree.body
    return {node.name: _method(node) for node in body if isinstance(node, ast.FunctionDef)}


def _method(node: ast.FunctionDef) -> Method:
    docstring = ast.get_docstring(node) or ""
    head, _, arguments = docstring.partition("\nArgs:\n")
    texts = _texts(arguments)
    positional = [*node.args.posonlyargs, *node.args.args]
    missing = [None] * (len(positional) - len(node.args.defaults))
    pairs = [*zip(positional, [*missing, *node.args.defaults], strict=True)]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    parameters = [
        Parameter(
            argument.arg,
            "" if argument.annotation is None else ast.unparse(argument.annotation),
            None if default is None else ast.unparse(default),
            texts.get(argument.arg, ""),
        )
        for argument, default in pairs
        if argument.arg != "self"
    ]
    return Method(tuple(parameters), head.strip())


def _texts(section: str) -> dict[str, str]:
    """Return the text of each argument of the section "Args" of a docstring in Google's style."""
    found: dict[str, str] = {}
    name = None
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break  # the next section
        if start := re.fullmatch(r" {4}(\w+): (.*)", line):
            name, found[start[1]] = start[1], start[2]
        elif name is not None and line.strip():
            found[name] += f" {line.strip()}"
    return found
