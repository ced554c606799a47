"""sentence-transformers' Trainer with its loss and with simtile's: `python examples/trainer.py`.

Fine-tunes MiniLM twice from the same weights, on the same batches and with the same dropout, and
compares the losses step by step. Which lines to change:

    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from simtile.integrations.sentence_transformers_losses import MultipleNegativesRankingLoss

Needs `pip install 'simtile[examples]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from typing import Any

from docstring_pairs import load_model, read_triples

TOLERANCE = 1e-3  # of the loss: rounding differs from the first step on and training amplifies it


def train(losses: Any, rows: dict[str, list[str]], steps: int, batch: int) -> list[float]:
    """The loss of every step with the MultipleNegativesRankingLoss of the module `losses`."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    model = load_model()
    loss = losses.MultipleNegativesRankingLoss(model)
    found: list[float] = []
    # The Trainer's own log rounds.
    loss.register_forward_hook(lambda module, inputs, value: found.append(value.item()))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=2e-5,
            seed=0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(rows), loss=loss
        )
        trainer.train()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    for package in ("accelerate", "datasets", "sentence_transformers"):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"{package} is not installed; pip install 'simtile[examples]'")
    from sentence_transformers.sentence_transformer import losses as original

    from simtile.integrations import sentence_transformers_losses as ours

    triples = read_triples()[0]
    rows = {name: [getattr(x, name) for x in triples] for name in ("query", "document", "negative")}
    curves = [train(x, rows, arguments.steps, arguments.batch) for x in (original, ours)]
    print("step  sentence-transformers  simtile")
    for step, (theirs, mine) in enumerate(zip(*curves, strict=True), 1):
        if step == 1 or step % 5 == 0:
            print(f"{step:4d}  {theirs:21.6f}  {mine:.6f}")
    largest = max(abs(theirs - mine) for theirs, mine in zip(*curves, strict=True))
    print(f"largest difference of {arguments.steps} steps: {largest:.1e}")
    if not largest <= TOLERANCE:
        sys.exit(f"the losses differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
