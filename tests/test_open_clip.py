"""simtile.integrations.open_clip beside open_clip's losses.

Its package needs torchvision and timm, so where it is installed only its file of losses is read;
elsewhere the formulas stand in for it.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from contrastive_cases import option_tuples, pairwise
from drop_ins import check_equal, rows
from hypothesis import given
from hypothesis import strategies as st

from simtile.integrations import open_clip as ours

LEVELS = {
    "loss": ("ClipLoss", "SigLipLoss"),
    "logit_scale": (1.0, 14.3),
    "scale_is": ("number", "tensor", "one element"),
    "logit_bias": (None, -2.5),
    "bias_is": ("number", "tensor"),
    "output_dict": (False, True),
}


def valid(drawn):
    return True


COVERING = pairwise(LEVELS, valid, ())


class Formulas:
    """arXiv:2103.00020, figure 3, and arXiv:2303.15343, equation 1."""

    class ClipLoss:
        def __call__(self, images, texts, logit_scale, logit_bias=None, output_dict=False):
            logits = logit_scale * images @ texts.T + (0.0 if logit_bias is None else logit_bias)
            labels = torch.arange(len(images))
            loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
            return {"contrastive_loss": loss} if output_dict else loss

    class SigLipLoss:
        def __call__(self, images, texts, logit_scale, logit_bias, output_dict=False):
            logits = logit_scale * images @ texts.T + (0.0 if logit_bias is None else logit_bias)
            labels = 2.0 * torch.eye(len(images), dtype=images.dtype) - 1.0
            loss = -F.logsigmoid(labels * logits).sum() / len(images)
            return {"contrastive_loss": loss} if output_dict else loss


def peers():
    """The formulas, and open_clip's file of losses."""
    found = [Formulas]
    package = importlib.util.find_spec("open_clip")
    if package is not None:
        file = Path(package.origin).with_name("loss.py")
        spec = importlib.util.spec_from_file_location("open_clip_loss", file)
        found.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(found[-1])
    return found


PEERS = peers()


def check(drawn, n, d, seed):
    inputs = [rows(seed, n, d), rows(seed + 1, n, d) + rows(seed, n, d)]
    numbers = {"scale": drawn["logit_scale"], "bias": drawn["logit_bias"]}
    tensors = [
        name for name in numbers if numbers[name] is not None and drawn[f"{name}_is"] != "number"
    ]
    shape = (1,) if drawn["scale_is"] == "one element" else ()
    inputs += [torch.full(shape, numbers[name]).double().numpy() for name in tensors]

    def loss(library, images, texts, *given):
        given = {**numbers, **dict(zip(tensors, given, strict=True))}
        function = getattr(library, drawn["loss"])()
        value = function(
            F.normalize(images, dim=-1),
            F.normalize(texts, dim=-1),
            given["scale"],
            given["bias"],
            output_dict=drawn["output_dict"],
        )
        return value["contrastive_loss"] if drawn["output_dict"] else value

    for peer in PEERS:
        check_equal(loss, peer, ours, inputs)


@pytest.mark.parametrize("number", range(len(COVERING)))
def test_loss(number):
    check(COVERING[number], 4, 6, number)


@given(
    option_tuples(LEVELS, valid),
    st.sampled_from([1, 2, 7, 33]),
    st.sampled_from([1, 2, 17]),
    st.integers(0, 2**31),
)
def test_loss_of_any_size(drawn, n, d, seed):
    check(drawn, n, d, seed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.ClipLoss(use_horovod=True), "use_horovod: found True, expected False"),
        (lambda: ours.ClipLoss(rank=1, world_size=2), "rank, world_size: found 1 and 2, expected"),
        (lambda: ours.SigLipLoss(rank=1), "rank, world_size: found 1 and 1, expected 0 and 1"),
        (lambda: ours.SigLipLoss(dist_impl="ring"), "dist_impl: found 'ring', expected one of"),
        (
            lambda: ours.ClipLoss()(torch.ones(2, 3), torch.ones(3, 3), 1.0),
            r"text_features: found \[3, 3\] with image_features \[2, 3\]",
        ),
        (
            lambda: ours.ClipLoss()(torch.ones(2, 3), torch.ones(2, 3), 0.0),
            r"logit_scale: found 0.0, expected a number above 0",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
