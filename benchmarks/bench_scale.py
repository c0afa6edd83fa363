"""What more devices give, that they change no byte, and what blocks of 66B models take.

python benchmarks/bench_scale.py [speedup] [hashes] [block] [options]

Without parts: speedup and hashes. Each part puts its results beside those that results/scale.json has already.
On a GPU: `bench_scale.py block --device cuda`; 128 sequences of 2,048 tokens through one block of each shape.
"""

import argparse
import tempfile
from pathlib import Path

import scale_block
import scale_hashes
import scale_speedup
from machine import save_part
from scale_jobs import METHODS

PARTS = ("speedup", "hashes", "block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--scratch", type=Path, help="where models and jobs lie; default: the system's")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=scale_speedup.NUM_BLOCKS, help="of the model of `speedup`")
    parser.add_argument("--device", choices=scale_block.TOKENS, default="cpu")
    parser.add_argument("--shape", nargs="+", choices=scale_block.SHAPES, default=list(scale_block.SHAPES))
    parser.add_argument("--shrink", type=int, default=1, help="divide the block's sizes by this")
    options = parser.parse_args()
    for part in options.parts or PARTS[:2]:
        if part not in PARTS:
            parser.error(f"no such part: {part}")
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            _run(part, Path(scratch), options)


def _run(part: str, scratch: Path, options: argparse.Namespace) -> None:
    """Run a part; what it has found is stored bit by bit."""
    if part == "speedup":
        for kind, found in scale_speedup.measure(scratch, options.repeats, options.blocks, options.methods):
            save_part("scale", part, {kind: found})
            print(scale_speedup.table(kind, found), flush=True)
    elif part == "hashes":
        for kind, found in scale_hashes.measure(scratch, options.methods):
            save_part("scale", part, {kind: found})
            print(scale_hashes.table(kind, found), flush=True)
    else:
        for shape in options.shape:
            name = f"{shape}, {options.device}" + (f", 1/{options.shrink}" if options.shrink > 1 else "")
            found = scale_block.measure(scratch, shape, options.shrink, options.device)
            save_part("scale", part, {name: found})
            print(scale_block.table(name, found), flush=True)


if __name__ == "__main__":
    main()
