"""simtile.nn.InfoNCE: its parameters, its checkpoint, what it refuses."""

import copy
import math
import pickle

import pytest
import torch
from info_nce_cases import Case
from info_nce_tensors import (
    tensors,
)

import simtile


class TestModule:
    case = Case(9, 11, 6, 2)

    def test_is_the_function(self):
        inputs = tensors(self.case, requires_grad=False)
        module = simtile.nn.InfoNCE(0.2, normalize=False, negatives_scope="own", reduction="none")
        expected = simtile.info_nce(
            *inputs, temperature=0.2, normalize=False, negatives_scope="own", reduction="none"
        )
        assert torch.equal(module(*inputs), expected)
        assert list(module.parameters()) == []
        assert module.temperature == 0.2

    def test_what_belongs_to_a_batch(self):
        q, d, x = tensors(self.case, requires_grad=False)
        batch = {"targets": torch.arange(9).flip(0), "document_ids": torch.arange(11) % 4}
        assert torch.equal(
            simtile.nn.InfoNCE()(q, d, x, **batch), simtile.info_nce(q, d, x, **batch)
        )

    def test_default_temperature(self):
        q, d, _ = tensors(self.case, requires_grad=False)
        assert torch.equal(simtile.nn.InfoNCE()(q, d), simtile.info_nce(q, d))

    def test_learns_the_temperature(self):
        module = simtile.nn.InfoNCE(0.5, learnable_temperature=True)
        assert [name for name, _ in module.named_parameters()] == ["log_temperature"]
        assert module.temperature.item() == pytest.approx(0.5)
        q, d, _ = tensors(self.case, requires_grad=False)
        q = d[:9] + 0.1 * q  # aligned: colder is better
        optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
        losses = []
        for _ in range(10):
            loss = module(q, d)
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert losses == sorted(losses, reverse=True)
        assert 0.0 < module.temperature.item() < 0.5

    def test_gradient_of_the_logarithm(self):
        module = simtile.nn.InfoNCE(0.5, learnable_temperature=True)
        q, d, _ = tensors(self.case, requires_grad=False)
        module(q, d).backward()
        temperature = torch.tensor(0.5, requires_grad=True)
        simtile.info_nce(q, d, temperature=temperature).backward()
        torch.testing.assert_close(module.log_temperature.grad, temperature.grad * 0.5)

    def test_copies_and_state(self):
        module = simtile.nn.InfoNCE(0.2, learnable_temperature=True, reduction="sum")
        other = simtile.nn.InfoNCE(0.9, learnable_temperature=True, reduction="sum")
        other.load_state_dict(module.state_dict())
        q, d, _ = tensors(self.case, requires_grad=False)
        for twin in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(q, d), module(q, d))

    def test_says_what_it_is(self):
        assert repr(simtile.nn.InfoNCE(0.1, reduction="sum")) == (
            "InfoNCE(temperature=0.1, reduction='sum')"
        )
        assert "temperature=0.05, learnable" in repr(simtile.nn.InfoNCE(learnable_temperature=True))

    def test_refuses_when_it_is_made(self):
        for options, message in (
            ({"temperature": 0.0}, r"temperature: found 0\.0"),
            ({"reduction": "avg"}, "reduction: found 'avg'"),
            ({"bias": math.nan}, "bias: found nan, expected a finite number"),
            ({"threads": 0}, "threads: found 0"),
        ):
            with pytest.raises(ValueError, match=message):
                simtile.nn.InfoNCE(**options)
        with pytest.raises(TypeError, match="targets: belongs to a batch"):
            simtile.nn.InfoNCE(targets=None)
        with pytest.raises(TypeError, match=r"scale: not an option of simtile\.info_nce"):
            simtile.nn.InfoNCE(scale=20.0)
        if not torch.cuda.is_available():
            with pytest.raises(RuntimeError, match="backend: 'triton' is not available"):
                simtile.nn.InfoNCE(backend="triton")
