"""What an experiment is: a table of recipes and of what was published of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]  # of the CSV that have a result, by name


@dataclass(frozen=True)
class Row:
    """A recipe, and what was published of it.

    Attributes:
      name: of the row, and of its runs' directories.
      config: "configs/allcnn_c.py"; "": the one that is given on the command line.
      overrides: of its keys, textual.
      published: the result, a share of the test images; None: there is none.
      source: of the published result, and how it differs from what is measured here.
      parameters: their number as it was published, such as "1.4M".
    """

    name: str
    config: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)
    published: float | None = None
    source: str = ""
    parameters: str = ""


@dataclass(frozen=True)
class Experiment:
    """A table of recipes, each of which is trained and tested.

    Attributes:
      title: a line about it.
      rows: of the table.
      published: what the column of the published results is called.
      measure: "accuracy" or "error".
      heading: of the column of the rows' names.
      claims: what its authors conclude, each with the function that says whether it
        holds.
    """

    title: str
    rows: tuple[Row, ...]
    published: str
    measure: str = "accuracy"
    heading: str = "network"
    claims: Mapping[str, Callable[[Rows], bool]] = field(default_factory=dict)
