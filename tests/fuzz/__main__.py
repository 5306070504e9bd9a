"""Run the fuzzer by hand: ``python -m tests.fuzz SEED COUNT`` prints every graph that breaks a law."""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import torch

from tests.fuzz.graphs import random_network
from tests.fuzz.laws import verdict


def main(first: int, count: int) -> int:
    """Print what is wrong, then the counts."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    for seed in range(first, first + count):
        kind, reasons = verdict(seed)
        counts[kind] += 1
        if kind in ("wrong", "foreign"):
            print(f"--- seed {seed}: {kind}", *reasons, str(random_network(seed)[0]), sep="\n", flush=True)
        elif kind == "refused":
            print(f"seed {seed} refused: {reasons[0][:160]}", flush=True)
    print(dict(counts))
    return counts["wrong"] + counts["foreign"]


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]), int(sys.argv[2]))))
