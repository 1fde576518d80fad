"""The `flaxcnn` command."""

import argparse
import contextlib
import errno
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxcnn.errors import FlaxcnnError, unknown
from flaxcnn.registry import create_model, list_models, model_info
from flaxcnn.reproduce import EXPERIMENTS

if TYPE_CHECKING:
    from flaxcnn.inference import Classifier


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

    command = commands.add_parser("predict", help="the classes of image files")
    command.add_argument("images", nargs="+", help="files, or folders of them")
    command.add_argument("--top", type=int, default=5, help="how many classes")
    add_weights(command, "--weights", required=True)
    command.set_defaults(run=predict)

    command = commands.add_parser("evaluate", help="loss and accuracy on a data set")
    command.add_argument("--data", required=True, help="digits, tfds:..., folder:...")
    command.add_argument("--data_dir", help="default: TFDS_DATA_DIR, else tfds's own")
    command.add_argument("--split", default="test", help="test or train")
    command.add_argument("--limit", type=int, default=0, help="the first n samples")
    command.add_argument("--batch_size", type=int, default=128)
    command.add_argument(
        "--flip", action="store_true", help="mean logits of image and mirror image"
    )
    add_weights(command, "--weights", required=True)
    command.set_defaults(run=evaluate)

    command = commands.add_parser("convert", help="weights to and from torch's files")
    add_weights(command, "weights")
    command.add_argument("out", help=".safetensors (ours), or torch's keys: .npz, .pth")
    command.set_defaults(run=convert)

    command = commands.add_parser("export", help="StableHLO, which jax alone can run")
    add_weights(command, "weights")
    command.add_argument("out", help="such as resnet50.stablehlo")
    command.add_argument("--batch_size", type=int, default=1, help="of its input")
    command.set_defaults(run=export)

    command = commands.add_parser("reproduce", help="an experiment of the lecture")
    command.add_argument("experiment", help=f"one of {', '.join(EXPERIMENTS)}")
    command.add_argument("--workdir", required=True)
    command.add_argument("--models", nargs="+", default=(), help="rows; default: all")
    command.add_argument("--seeds", type=int, default=1, help="runs of each")
    command.add_argument("--epochs", type=float, default=0, help="not the recipe's")
    command.add_argument("--lr", nargs="+", default=(), help="the best of these rates")
    command.add_argument("--augment", action="store_true", help="as the paper does")
    command.add_argument("--config", default="", help="regimes: path.py[:argument]")
    command.add_argument(
        "--time-limit", type=float, default=0, metavar="SECONDS", help="then save, stop"
    )
    command.set_defaults(run=reproduce)

    args, rest = parser.parse_known_args(argv)
    if rest and args.run is not reproduce:
        commands.choices[args.command].error(
            f"unrecognized arguments: {' '.join(rest)}"
        )
    args.overrides = rest
    args.argv = sys.argv[1:] if argv is None else argv
    # Pillow's, of images that are read all the same, or refused.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        args.run(args)
        sys.stdout.flush()
    except FlaxcnnError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # What is left to print would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        closed = error.errno == errno.EPIPE  # nobody reads on, as after `| head`
        sys.exit(1 if closed else f"error: {error.strerror}; make room, try again")


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


def predict(args: argparse.Namespace) -> None:
    """Prints the likeliest classes of each image; tells at the end which were none."""
    import numpy as np

    from flaxcnn.data.images import image_files

    if args.top < 1:
        raise FlaxcnnError(f"--top={args.top}; at least 1")
    paths: list[Path] = []
    for path in map(Path, args.images):
        found = image_files(path) if os.path.isdir(path) else [path]
        if not found:
            raise FlaxcnnError(f"{path}: no images in this folder")
        paths += found
    classifier = load_weights(args)
    errors = []
    for path in paths:
        try:
            image = classifier.read(path)
        except FlaxcnnError as error:
            errors.append(str(error))
            continue
        (classes,) = classifier.predict(np.stack([image]), args.top)
        print(path)
        for name, probability in classes:
            shown = name if name.isprintable() else repr(name)
            print(f"  {probability:7.2%}  {shown}")
    if errors:
        raise FlaxcnnError("; ".join(errors))


def evaluate(args: argparse.Namespace) -> None:
    """Prints loss and accuracy over a whole split."""
    from flaxcnn.data.sources import load_source

    if args.batch_size < 1:
        raise FlaxcnnError(f"--batch_size={args.batch_size}; at least 1")
    classifier = load_weights(args)
    size = classifier.image_shape[0]
    source = load_source(
        args.data, args.split, data_dir=args.data_dir, limit=args.limit,
        image_size=size, resize=max(size, classifier.resize),
    )  # fmt: skip
    result = classifier.evaluate(source, args.batch_size, args.flip)
    if sorted(source.classes) != sorted(classifier.classes):
        print("classes of other names: compared by their numbers", file=sys.stderr)
    top5 = f", top-5 {result['top5']:.2%}" if len(classifier.classes) > 5 else ""
    print(
        f"{classifier.name} on {source.name}, {args.split}: accuracy "
        f"{result['accuracy']:.2%}{top5}, loss {result['loss']:.4f}, "
        f"{result['count']:,.0f} images{', each and its mirror image' * args.flip}"
    )


def convert(args: argparse.Namespace) -> None:
    """Writes the weights of a file into one of another kind."""
    import jax

    from flaxcnn.weights.files import write_state_dict
    from flaxcnn.weights.pretrained import model_name, open_weights, restore
    from flaxcnn.weights.torch import as_state_dict

    with output_file(args.out) as out:
        if out.suffix == ".safetensors":
            classifier = load_weights(args)
            name, variables = classifier.name, classifier.variables
            classifier.save(out)
        else:
            file = open_weights(args.weights)
            name = model_name(file, args.model)
            _, variables = restore(file, name)
            write_state_dict(out, as_state_dict(variables))
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    print(f"{out}: {name}, {count:,} parameters")


def export(args: argparse.Namespace) -> None:
    """Writes a classifier as a program, and says how to call it."""
    from flaxcnn.atomic import replacing

    with output_file(args.out) as out:
        classifier = load_weights(args)
        data = classifier.export(args.batch_size)
        with replacing(out) as part:
            part.write_bytes(data)
    shape = [args.batch_size, *classifier.image_shape]
    print(
        f"{out}: {classifier.name}, {len(data):,} bytes; "
        f"jax.export.deserialize(...).call(images) of uint8 {shape} gives logits"
    )


@contextlib.contextmanager
def output_file(name: str) -> Iterator[Path]:
    """The path of a file to write; FlaxcnnError if that cannot be."""
    out = Path(name)
    if not os.path.isdir(out.parent):
        raise FlaxcnnError(f"{out}: no directory {out.parent}; make it first")
    try:
        yield out
    except OSError as error:
        raise FlaxcnnError(f"{out}: cannot be written ({error.strerror})") from error


def reproduce(args: argparse.Namespace) -> None:
    """Runs an experiment, or a slice of it, and prints its table."""
    name: str = args.experiment
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    if args.augment:
        name += "_augmented"
        if name not in EXPERIMENTS:
            raise FlaxcnnError(f"{args.experiment} has no --augment")
    if args.seeds < 1:
        raise FlaxcnnError(f"--seeds={args.seeds}; at least 1")
    for key in ("epochs", "time_limit"):
        if getattr(args, key) < 0:
            option = key.replace("_", "-")
            raise FlaxcnnError(f"--{option}={getattr(args, key):g}; at least 0")
    from flaxcnn.reproduce.runs import carry_out, plan
    from flaxcnn.reproduce.table import report
    from flaxcnn.train.config import parse_overrides

    experiment = EXPERIMENTS[name]
    workdir = Path(args.workdir).expanduser().resolve()
    runs = plan(
        experiment, workdir, config=args.config, models=args.models,
        overrides=parse_overrides(args.overrides), seeds=args.seeds,
        epochs=args.epochs, rates=args.lr,
    )  # fmt: skip
    try:
        ended = carry_out(runs, args.time_limit)
    finally:
        command = f"flaxcnn {shlex.join(args.argv)}"
        command = re.sub(r" --time-limit[ =]\S+", "", command)  # one slice of many
        print(report(name, experiment, runs, workdir, command), end="")
    if not ended:
        print("stopped; the same command continues from there")


def add_weights(command: argparse.ArgumentParser, name: str, **options: Any) -> None:
    """The arguments that say which weights, and what their file may not say."""
    command.add_argument(
        name, help="a file, or published ones: resnet50, resnet50:V1", **options
    )
    command.add_argument("--model", help="registered name, if the file does not tell")
    command.add_argument("--preprocess", help="of images, if it is not the usual one")
    command.add_argument("--image_size", type=int, help="side of the central crop")
    command.add_argument("--resize", type=int, help="shorter side before the crop")
    command.add_argument("--classes", help="a file with their names, one a line")


def load_weights(args: argparse.Namespace) -> "Classifier":
    """The classifier that the arguments of `add_weights` describe; says how it sees."""
    from flaxcnn.inference import load_classifier
    from flaxcnn.xla import use_compilation_cache

    use_compilation_cache()
    classes = None
    if args.classes:
        try:
            classes = Path(args.classes).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FlaxcnnError(f"--classes={args.classes}: {error}") from None
    classifier = load_classifier(
        args.weights, args.model, preprocess=args.preprocess,
        image_size=args.image_size, resize=args.resize, classes=classes,
    )  # fmt: skip
    print(  # some of it may be a guess, see `load_classifier`
        f"{classifier.name}: images of {classifier.image_shape[0]} pixels, cut from "
        f"{classifier.resize}; preprocessing {classifier.preprocess.kind}",
        file=sys.stderr,
    )
    return classifier
