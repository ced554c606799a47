"""A loss of another library and its drop-in on equal inputs: values and gradients."""

import numpy as np
import torch


def rows(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def results(loss, library, inputs):
    """The loss and its gradients at the inputs, of Σ_i (i + 1) loss_i where it has rows."""
    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    value = loss(library, *leaves)
    weights = 1.0 + torch.arange(value.numel(), dtype=value.dtype).reshape(value.shape)
    (value * weights).sum().backward()
    grads = [np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in leaves]
    return value.detach().numpy(), grads


def check_equal(loss, peer, ours, inputs, tolerance=1e-9):
    """`loss(library, *tensors)` is the same with both libraries, and so are its gradients."""
    value, grads = results(loss, ours, inputs)
    expected, expected_grads = results(loss, peer, inputs)
    assert value.dtype == expected.dtype == np.float64
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=tolerance, atol=tolerance)
