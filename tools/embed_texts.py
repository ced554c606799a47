"""Embed tens of thousands of real texts, for measurements of search quality.

    python tools/embed_texts.py                      # descriptions of Debian's packages
    python tools/embed_texts.py --texts FILE         # any other texts, one a line
    python tools/embed_texts.py --output FOLDER      # default: build/texts

Writes FOLDER/texts.txt, one text a line, and FOLDER/embeddings.npy, float32 [N, 384] and of length
1, from all-MiniLM-L6-v2. Embeddings that are there for the same texts and weights are kept. Needs
the `train` extra. Debian's descriptions are those that `apt-cache dumpavail` knows (`apt update`
fetches them), each once, in the order in which they first appear: about 60,000 for Debian 12.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from simtile.demo import cache, minilm

ROOT = Path(__file__).resolve().parent.parent
SHORTEST = 8  # characters; below that a description says nothing
REPORT_EVERY = 4096  # texts


def debian_descriptions() -> list[str]:
    """The descriptions of all packages that apt knows, white space collapsed, each once."""
    try:
        listing = subprocess.run(
            ["apt-cache", "dumpavail"], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"apt-cache dumpavail failed ({error}); give other texts with --texts FILE")
    return distinct(descriptions(listing))


def descriptions(listing: str) -> Iterator[str]:
    """The Description fields of a Debian control file, continuation lines included."""
    for package in listing.split("\n\n"):
        found: list[str] | None = None
        for line in package.splitlines():
            if line.startswith(("Description: ", "Description-en: ")):
                found = [line.partition(": ")[2]]
            elif found is not None and line.startswith(" "):
                found.append(line.strip().removeprefix("."))
            elif found is not None:
                break
        if found:
            yield " ".join(" ".join(found).split())


def distinct(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if len(text) >= SHORTEST]


def embed(texts: list[str], folder: Path) -> Path:
    """Write the texts and their embeddings into the folder; the path of the embeddings."""
    model_folder = minilm.find_model()
    key = cache.cache_key(minilm.weights_digest(model_folder), texts)
    embeddings, key_file = folder / "embeddings.npy", folder / "key.txt"
    if embeddings.exists() and key_file.exists() and key_file.read_text() == key:
        return embeddings
    folder.mkdir(parents=True, exist_ok=True)
    key_file.unlink(missing_ok=True)
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")

    started, done, shown = time.monotonic(), 0, 0

    def report(count: int) -> None:
        nonlocal done, shown
        done += count
        if done - shown >= REPORT_EVERY:
            shown = done
            seconds = time.monotonic() - started
            print(f"{done} of {len(texts)} texts, {done / seconds:.0f} a second", flush=True)

    np.save(embeddings, minilm.embed(minilm.load_model(model_folder), texts, report))
    key_file.write_text(key)  # last: a run that was stopped leaves no key
    return embeddings


def main() -> None:
    parser = argparse.ArgumentParser(description="Embed many real texts with all-MiniLM-L6-v2.")
    parser.add_argument("--texts", type=Path, help="one text a line; default: Debian's packages")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "texts")
    options = parser.parse_args()
    if options.texts:
        texts = distinct(" ".join(line.split()) for line in options.texts.read_text().splitlines())
    else:
        texts = debian_descriptions()
    if not texts:
        sys.exit("no texts found")
    path = embed(texts, options.output)
    print(f"{len(texts)} texts, {path}")


if __name__ == "__main__":
    main()
