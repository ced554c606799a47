"""Import the installed package and check one call: for machines and installs that pytest is not on.

usage: python smoke.py [--level LEVEL] [--not-under DIRECTORY]
"""

import argparse
import math
import random
from pathlib import Path

import numpy as np

import simtile


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--level", help="the ISA level that must be in use")
    parser.add_argument("--not-under", type=Path, help="the package must not come from here")
    arguments = parser.parse_args()

    place = Path(simtile.__file__).resolve()
    assert not (arguments.not_under and arguments.not_under.resolve() in place.parents), place
    level = simtile.cpu_info()["level"]
    assert arguments.level in (None, level), level

    random.seed(1)
    n, dim, temperature = 9, 5, 0.2
    rows = [[[random.gauss(0, 1) for _ in range(dim)] for _ in range(n)] for _ in range(2)]
    queries, documents = (np.array(x, dtype=np.float32) for x in rows)
    loss, grad_queries, grad_documents = simtile.info_nce_grad(
        queries, documents, temperature=temperature
    )

    def unit(x):
        return [a / math.hypot(*x) for a in x]

    expected = 0.0
    for i in range(n):
        q = unit(rows[0][i])
        logits = [sum(map(lambda a, b: a * b, q, unit(d))) / temperature for d in rows[1]]
        expected += (math.log(sum(math.exp(s) for s in logits)) - logits[i]) / n
    assert abs(float(loss) - expected) < 1e-5, (loss, expected)
    for gradient, x in ((grad_queries, queries), (grad_documents, documents)):
        assert gradient.shape == x.shape
        # The loss does not depend on a row's length.
        assert np.abs((gradient * x).sum(axis=1)).max() < 1e-5
        assert np.abs(gradient).max() > 1e-3
    print(f"smoke: level {level}, loss {float(loss):.6f} (expected {expected:.6f}), {place.parent}")


if __name__ == "__main__":
    main()
