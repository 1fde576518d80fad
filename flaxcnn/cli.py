"""The `flaxcnn` command."""

import argparse
import sys
from collections.abc import Sequence

from flaxcnn.errors import FlaxcnnError
from flaxcnn.registry import create_model, list_models, model_info


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a subcommand; bad input is one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="flaxcnn", description="CNNs in JAX/Flax")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("list", help="the registered models")
    command.add_argument("pattern", nargs="?", default="*", help='such as "allcnn*"')
    command.set_defaults(run=lambda args: list_(args.pattern))

    command = commands.add_parser("summary", help="layers, shapes and parameters")
    command.add_argument("model")
    command.add_argument("--num_classes", type=int)
    command.set_defaults(run=lambda args: summary(args.model, args.num_classes))

    command = commands.add_parser("prepare", help="download and prepare a data set")
    command.add_argument("data", help="cifar10, cifar100 or mnist")
    command.add_argument("--data_dir", help="default: TFDS_DATA_DIR, else tfds's own")
    command.set_defaults(run=lambda args: prepare(args.data, args.data_dir))

    args = parser.parse_args(argv)
    try:
        args.run(args)
    except FlaxcnnError as error:
        sys.exit(f"error: {error}")


def list_(pattern: str) -> None:
    """Prints a table of the models whose names match."""
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "parameters", "MACs", "input", "paper", box=None)
    for name in list_models(pattern):
        info = model_info(name)
        size = "x".join(map(str, info.input_size))
        table.add_row(
            name, f"{info.params:,}", f"{info.macs / 1e6:,.1f} M", size, info.paper
        )
    if not table.row_count:
        raise FlaxcnnError(f"no model matches {pattern!r}; `flaxcnn list` shows all")
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def summary(name: str, num_classes: int | None) -> None:
    """Prints a model's layers at its standard input size, and its published facts."""
    import jax
    import jax.numpy as jnp

    fields = {} if num_classes is None else {"num_classes": num_classes}
    model = create_model(name, **fields)
    x = jnp.zeros((1, *model_info(name).input_size))
    width = {"width": 100, "force_terminal": False}
    print(model.tabulate(jax.random.key(0), x, train=False, console_kwargs=width))
    info = model_info(name)
    print(
        f"paper: {info.paper}; {info.params:,} parameters, {info.macs:,} multiply-adds"
    )
    print(f"input: {info.input_size}, preprocessing {info.preprocess}")
    for weights in info.weights:
        top1 = f"{weights.top1:.2%}" if weights.top1 else "no classifier"
        print(f"weights {weights.version}: {weights.file}, top-1 {top1}")


def prepare(name: str, data_dir: str | None) -> None:
    """Prepares a data set without TensorFlow and prints where it is."""
    from flaxcnn.data import builders

    print(builders.prepare(name, builders.data_root(data_dir)))
