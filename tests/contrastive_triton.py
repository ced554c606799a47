"""The Triton kernels of the contrastive family on a Case of contrastive_cases."""

from contrastive_kernel import NUMPY, contrast_of
from triton_worker import Interpreter
from triton_worker import info_nce as triton_info_nce

from simtile._contrast import DIRECTIONS

EVERYTHING = {
    "directions": tuple(DIRECTIONS),
    "negatives_per_query": 2,
    "bank": 1,
    "guide": ("relative", 0.3),
    "false_negative_margin": -0.3,
    "hardness": "all_negatives",
    "row_weights": True,
}
OWN = {
    "directions": ("query_to_doc", "query_to_query"),
    "negatives_per_query": 3,
    "negatives_scope": "own",
    "bank": 1,
    "targets": True,
    "ids": True,
    "guide": ("absolute", -0.2),
    "false_negative_margin": 0.0,
    "hardness": "hard_negatives",
    "normalize": False,
}
CLIP = {"directions": ("query_to_doc", "doc_to_query"), "partition": "per_direction"}

ALL = (True, True, True, True)
interpreter = Interpreter()


def arguments(case, dtype, need, precision):
    def stored(x):
        return None if x is None else x.astype(NUMPY[dtype])

    options = {
        "contrast": contrast_of(case),
        "guide": [stored(x) for x in case.guide or ()],
        "precision": precision,
    }
    for name in (
        "temperature",
        "normalize",
        "targets",
        "query_ids",
        "document_ids",
        "row_weights",
    ):
        options[name] = case[name]
    return [stored(x) for x in case.inputs], dtype, options, need


def as_result(arrays):
    """As run_kernel of contrastive_kernel returns it."""
    *arrays, grad_temperature = arrays
    return *arrays, None if grad_temperature is None else float(grad_temperature)


def tally_of(case, dtype, need=ALL, device="cpu"):
    """The result, and the tally of statistics."""
    inputs, name, options, needed = arguments(case, dtype, need, "ieee")
    call = (inputs, name, {**options, "statistics": True}, needed)
    if device == "cpu":
        *arrays, tally = interpreter(triton_info_nce, *call, True)
    else:
        *arrays, tally = triton_info_nce(*call, device=device)
    return as_result(arrays), tally


def run_interpreter(case, dtype, *, need=ALL, small_tiles=True, chunk_bytes=None):
    call = arguments(case, dtype, need, "ieee")
    return as_result(interpreter(triton_info_nce, *call, small_tiles, chunk_bytes))


def run_on_gpu(case, dtype, *, need=ALL, precision="ieee"):
    call = arguments(case, dtype, need, precision)
    return as_result(triton_info_nce(*call, device="cuda"))
