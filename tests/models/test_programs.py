"""Every model is a short Pyro program: it can be read, and written anew, in one sitting."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from types import FunctionType

import pytest
import torch

from pyrohmm import models

MODELS = [cls for _, cls in inspect.getmembers(models, inspect.isclass) if issubclass(cls, torch.nn.Module)]
MOST_LINES = 45


def function(attribute):
    """What runs when a method or property is used; None if it is none of the models'."""
    found = attribute.fget if isinstance(attribute, property) else attribute
    return found if isinstance(found, FunctionType) and found.__module__.startswith("pyrohmm.models") else None


def tree_of(f: FunctionType) -> ast.FunctionDef:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(f))).body
    assert isinstance(tree, ast.FunctionDef)
    return tree


def called(cls: type, f: FunctionType) -> Iterator[FunctionType | None]:
    """Methods of the class, or of those above it, and functions of the same file that a function uses."""
    for node in ast.walk(tree_of(f)):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                yield function(inspect.getattr_static(cls, name, None))
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                above = cls.__mro__[next(i for i, c in enumerate(cls.__mro__) if f in vars(c).values()) + 1 :]
                yield function(next((vars(c)[name] for c in above if name in vars(c)), None))
            case ast.Name(id=name) if (other := vars(sys.modules[f.__module__]).get(name)) is not None:
                yield function(other) if getattr(other, "__module__", None) == f.__module__ else None


def program(cls: type) -> set[FunctionType]:
    """`forward`, `model` and `guide`, and all that they call of what stands in the files of the model's classes."""
    found: set[FunctionType] = set()
    ahead = [function(inspect.getattr_static(cls, name, None)) for name in ("forward", "model", "guide")]
    while ahead:
        f = ahead.pop()
        if f is not None and f not in found:
            found.add(f)
            ahead += called(cls, f)
    return found


def num_lines(f: FunctionType) -> int:
    """Lines of the body with code on them."""
    body = tree_of(f).body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    source = textwrap.dedent(inspect.getsource(f)).splitlines()
    return sum(
        bool(line.strip()) and not line.strip().startswith("#")
        for statement in body
        for line in source[statement.lineno - 1 : statement.end_lineno]
    )


@pytest.mark.parametrize("cls", MODELS)
def test_programs_are_short(cls):
    """What a class inherits counts where it stands."""
    assert "Reference:" in (cls.__doc__ or "")
    lines = {f: num_lines(f) for f in program(cls)}
    own = {f: n for f, n in lines.items() if f.__module__ == cls.__module__}
    print(cls.__name__, sum(own.values()), "of", sum(lines.values()))
    assert sum(own.values()) <= MOST_LINES, {f.__qualname__: n for f, n in own.items()}


def test_what_is_counted():
    names = {f.__qualname__ for f in program(models.BayesianHMM)}
    assert {"BayesianHMM.forward", "BayesianHMM._sites", "HMM.forward", "HMM._next_state", "HMM.model"} <= names
    assert "HMM._sample_priors" not in names and "HMM.simulate" not in names
    assert num_lines(function(models.HMM.model)) == 1
    assert num_lines(function(models.HMM.forward)) > 15
