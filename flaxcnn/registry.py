"""The model registry: rows of names, fields and published facts.

A model file declares its variants as `@register` rows on the class that they
parametrise. Listing reads those rows from the source files, so that it needs
neither jax nor flax; a model's file is imported when the model is created.
"""

import ast
import dataclasses
import fnmatch
import functools
import importlib
import re
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flaxcnn.errors import FlaxcnnError, unknown
from flaxcnn.weights.catalog import Weights, weights_of

if TYPE_CHECKING:
    from flax import linen as nn

Class = TypeVar("Class", bound=type)


@dataclasses.dataclass(frozen=True)
class Info:
    """Published facts of a registered model.

    Attributes:
      params: exact number of parameters at the row's own number of classes.
      macs: exact multiply-adds of one image at `input_size`, by `count_macs`.
      paper: arXiv id, or what the model is described in.
      input_size: the standard input, (height, width, channels).
      preprocess: the input it is meant for, a kind of `flaxcnn.data.preprocess`.
      aux_weights: of the auxiliary heads' losses, by endpoint.
      weights: published files with their accuracies, the default first.
    """

    params: int
    macs: int
    paper: str
    input_size: tuple[int, int, int] = (224, 224, 3)
    preprocess: str = "imagenet"
    aux_weights: Mapping[str, float] = dataclasses.field(
        default_factory=dict, hash=False
    )
    weights: tuple[Weights, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Row:
    cls: type
    fields: dict[str, Any]
    info: Info


_rows: dict[str, _Row] = {}


def register(name: str, *, info: Info, **fields: Any) -> Callable[[Class], Class]:
    """Class decorator: `name` stands for the decorated module with `fields` set."""

    def decorate(cls: Class) -> Class:
        owner = cls.__module__
        if name in _declared():
            owner = f"flaxcnn.models.{_declared()[name][0]}"
        if name in _rows:
            owner = _rows[name].cls.__module__
        if name in _rows or owner != cls.__module__:
            raise FlaxcnnError(
                f"model {name!r} is registered twice, by {owner} and "
                f"{cls.__module__}; rename one of them"
            )
        _check_fields(name, cls, fields)
        _rows[name] = _Row(cls, fields, info)
        return cls

    return decorate


def create_model(name: str, **fields: Any) -> "nn.Module":
    """The flax module registered as `name`, with `fields` replacing its row's.

    Lists, which is what JSON makes of them, become tuples: a module can be hashed.

    Raises:
      FlaxcnnError: no such model, or no such field; with the nearest names.
    """
    row = _row(name)
    _check_fields(name, row.cls, fields)
    fields = {field: _tuples(value) for field, value in fields.items()}
    return row.cls(**{**row.fields, **fields})


def list_models(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern ("resnet*"), in natural order."""
    names = fnmatch.filter({*_declared(), *_rows}, pattern)
    return sorted(names, key=_natural)


def _natural(name: str) -> list[Any]:
    """resnet18 before resnet101: text and numbers take turns."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]


def model_info(name: str) -> Info:
    """The published facts of a registered name."""
    if name in _rows:
        info = _rows[name].info
    elif name in _declared():
        info = _declared()[name][1]
    else:
        raise unknown("model", name, list_models())
    return dataclasses.replace(info, weights=weights_of(name))


def model_fields(name: str) -> dict[str, tuple[Any, Any]]:
    """The fields of a model: {field: (type annotation, the row's value)}.

    Submodule bookkeeping (`parent`, `name`) and `dtype`, which the trainer's
    `precision` decides, are left out.
    """
    row = _row(name)
    return {
        field.name: (field.type, row.fields.get(field.name, field.default))
        for field in _fields(row.cls)
        if field.name != "dtype"
    }


def _row(name: str) -> _Row:
    if name not in _rows:
        if name not in _declared():
            raise unknown("model", name, list_models())
        importlib.import_module(f"flaxcnn.models.{_declared()[name][0]}")
    return _rows[name]


def _fields(cls: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]


def _check_fields(name: str, cls: type, fields: dict[str, Any]) -> None:
    known = [field.name for field in _fields(cls)]
    for field in fields:
        if field not in known:
            raise unknown(f"field of model {name}", field, known)
    classes = fields.get("num_classes", 0)
    if not isinstance(classes, Integral) or classes < 0 or isinstance(classes, bool):
        raise FlaxcnnError(
            f"{name}: num_classes={classes!r} is no number of classes; 0 gives pooled "
            "features"
        )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@functools.cache
def _declared() -> dict[str, tuple[str, Info]]:
    """{name: (module, info)} of every `@register` row in flaxcnn/models."""
    declared: dict[str, tuple[str, Info]] = {}
    for path in sorted((Path(__file__).parent / "models").glob("[!_]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for row in getattr(node, "decorator_list", []):
                if isinstance(row, ast.Call) and ast.unparse(row.func) == "register":
                    name, info = _literal_row(row)
                    if name in declared:
                        raise FlaxcnnError(
                            f"model {name!r} is registered twice, in {path.stem}.py "
                            f"and {declared[name][0]}.py; rename one of them"
                        )
                    declared[name] = (path.stem, info)
    return declared


def _literal_row(row: ast.Call) -> tuple[str, Info]:
    (info,) = (keyword.value for keyword in row.keywords if keyword.arg == "info")
    assert isinstance(info, ast.Call)
    facts = {str(key.arg): ast.literal_eval(key.value) for key in info.keywords}
    return ast.literal_eval(row.args[0]), Info(**facts)
