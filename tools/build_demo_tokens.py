"""Build the token vectors that `simtile demo` ships, or check that they can be built again.

    python tools/build_demo_tokens.py            # writes into python/simtile/demo/data/
    python tools/build_demo_tokens.py --check    # compares with what is there, writes nothing

Needs the `train` extra and the corpus of tools/build_demo_corpus.py. Rules:
 1. all-MiniLM-L6-v2's token vectors, of length 1, of texts cut at 128 tokens: the first 40 of a
    document and the first 32 of a query;
 2. one matrix 384 x 64 for both, which starts at the documents' principal directions and is trained
    with simtile.maxsim in the batch's cross entropy, as ColBERT is, on the pairs that the demo's
    seed 0 trains on: the queries that it holds out, and that are shipped, played no part;
 3. documents as residuals of 2 bits, queries as int8 with a scale a token.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import simtile
from simtile.demo import adapter, corpus, minilm, retrieval, tokens

DATA = Path(__file__).resolve().parent.parent / "python" / "simtile" / "demo" / "data"
READ_TOKENS, DOCUMENT_TOKENS, QUERY_TOKENS = 128, 40, 32
DIM, CENTROIDS = 64, 256
QUERIES = 400
# Few steps: 1,279 pairs are soon learnt by heart.
STEPS, BATCH, RATE, TEMPERATURE = 60, 128, 3e-3, 0.03

FloatArray = npt.NDArray[np.float32]


def train_head(
    queries: list[FloatArray], documents: list[FloatArray], training: npt.NDArray[np.int64]
) -> FloatArray:
    """The matrix [384, DIM], of the pairs `training`."""
    rng = np.random.default_rng(0)
    together = np.concatenate([documents[i] for i in training])
    principal = np.linalg.svd(together[::5].astype(np.float64), full_matrices=False)[2][:DIM]
    weight = torch.tensor(principal.T, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=RATE)
    for step in range(STEPS):
        rows = rng.choice(training, BATCH, replace=False)
        sides = [
            [torch.from_numpy(side[i]) @ weight for i in rows] for side in (queries, documents)
        ]
        scores = simtile.maxsim(*sides, normalize=True, length_normalize=True)
        loss = torch.nn.functional.cross_entropy(scores / TEMPERATURE, torch.arange(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            print(f"step {step + 1} of {STEPS}: loss {loss.item():.3f}", flush=True)
    return weight.detach().numpy()


def build() -> dict[str, bytes]:
    """The content of every generated file by its name."""
    texts = corpus.load_corpus()
    model = minilm.load_model(minilm.find_model())
    queries, documents = (
        [x[:kept] for x in minilm.token_vectors(model, side, READ_TOKENS)]
        for side, kept in (
            ([pair.query for pair in texts.pairs], QUERY_TOKENS),
            ([pair.document for pair in texts.pairs], DOCUMENT_TOKENS),
        )
    )
    training, held_out = adapter.split(len(texts.pairs), adapter.HELD_OUT, 0)
    weight = train_head(queries, documents, training)

    index = simtile.MultiVectorIndex(DIM, "residual2", normalize=True, centroids=CENTROIDS)
    index.add([document @ weight for document in documents])
    rows = held_out[:QUERIES]
    unit = [retrieval.unit_rows(queries[i] @ weight) for i in rows]
    codes = simtile.quantize(np.concatenate(unit), "int8_vector")
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / tokens.DOCUMENTS_FILE)
        np.savez(
            Path(folder) / tokens.QUERIES_FILE,
            codes=codes.codes,
            scales=codes.scale,
            lengths=np.array([len(x) for x in unit], np.int64),
            rows=rows,
        )
        files = {
            name: (Path(folder) / name).read_bytes()
            for name in (tokens.DOCUMENTS_FILE, tokens.QUERIES_FILE)
        }
    manifest = {
        "format": tokens.FORMAT,
        "dim": DIM,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[tokens.MANIFEST_FILE] = (json.dumps(manifest, indent=2) + "\n").encode()
    return files


def recall(folder: Path) -> dict[str, float]:
    """What the files give: bits of a trained matrix differ from machine to machine, this hardly."""
    from simtile.demo import rerank

    texts = corpus.load_corpus()
    shipped = tokens.load_tokens(len(texts.pairs), folder)
    result = rerank.measure(
        texts.queries[shipped.rows],
        shipped.queries,
        shipped.rows,
        texts.documents,
        shipped.documents,
        threads=None,
    )
    found: dict[str, Any] = {"reranked": result.reranked, "everything": result.everything}
    return {name: float((places < 10).mean()) for name, places in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the token vectors that simtile demo ships.")
    parser.add_argument("--output", type=Path, default=DATA, help="folder to write (%(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="compare with the folder, write nothing"
    )
    options = parser.parse_args()
    files = build()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        new = recall(Path(folder))
    print("recall@10:", {name: round(value, 3) for name, value in new.items()})
    if options.check:
        old = recall(options.output)
        print("of the files there:", {name: round(value, 3) for name, value in old.items()})
        return int(any(abs(new[name] - old[name]) > 0.02 for name in new))
    for name, content in files.items():
        (options.output / name).write_bytes(content)
    print(f"{sum(map(len, files.values())) / 1e6:.2f} MB in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
