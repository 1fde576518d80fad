"""Trains a network: python train.py --config configs/allcnn_c.py:digits

Any key of the config can be set: --config.batch_size=256 --config.optim.lr=0.01.
"""

import argparse
import sys

from flaxcnn import FlaxcnnError


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="path/to/config.py[:argument]")
    parser.add_argument("--workdir", help="default: one in runs/ for each command")
    parser.add_argument("--coordinator", help="multi-host: address:port of process 0")
    parser.add_argument("--num_processes", type=int, help="multi-host: how many")
    parser.add_argument("--process_id", type=int, help="multi-host: which one is this")
    parser.add_argument("--multihost", action="store_true", help="ask the cluster")
    args, rest = parser.parse_known_args(argv)

    from flaxcnn.train.config import load_config, parse_overrides
    from flaxcnn.train.loop import fit
    from flaxcnn.train.mesh import initialize_distributed
    from flaxcnn.train.workdir import default_workdir

    overrides = parse_overrides(rest)
    config = load_config(args.config, overrides)
    several = (args.coordinator, args.num_processes, args.process_id)
    if args.multihost or any(value is not None for value in several):
        initialize_distributed(*several)
    fit(config, args.workdir or default_workdir(args.config, overrides))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FlaxcnnError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # before the first step: there is nothing to save
        sys.exit("interrupted")
