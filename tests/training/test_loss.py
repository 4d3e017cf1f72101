"""The loss of a head that never holds all its logits is that of its logits."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from tests.training.samples import VOCABULARY, losses_alone, pack_of, tiny
from training import PackedCollator, loss, use_backend
from training.attention.interface import model_inputs
from training.checking.families import tiny_config
from training.loss import target_losses
from training.plan import loss_sum, losses_of, micro_batch_of, plan_step


@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_of_a_head_is_that_of_its_logits_and_never_holds_them_all(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    num_targets, vocabulary = 50, 400
    at_once = 20 * vocabulary
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once + 3)
    head, others = (torch.nn.Linear(16, vocabulary, bias=bias) for _ in range(2))
    others.load_state_dict(head.state_dict())
    hidden = torch.randn(num_targets, 16, requires_grad=True)
    same = hidden.detach().clone().requires_grad_()
    labels = torch.randint(0, vocabulary, (num_targets,))
    labels[[3, 49]] = -100
    weights = torch.rand(num_targets)
    losses = torch.nn.functional.cross_entropy(others(same), labels, reduction="none")
    expected = torch.dot(losses, weights)
    (expected * 0.37).backward()
    with Held(at_once) as held:
        found = loss.linear_loss(hidden, head.weight, head.bias, labels, weights)
        (found * 0.37).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip([hidden, *head.parameters()], [same, *others.parameters()], strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-6)
    assert held.most == 1  # the logits of a part, once; and the head is smaller
    with pytest.raises(RuntimeError, match="taken already"):
        found.backward()


class Held(TorchDispatchMode):
    """The most tensors of at least so many numbers (float32) that were held at once."""

    def __init__(self, numel: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel, self.most = numel, 0
        self.storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), named: Any = None) -> Any:
        output = function(*arguments, **(named or {}))
        for each in output if isinstance(output, tuple | list) else [output]:
            if isinstance(each, torch.Tensor) and each.untyped_storage().nbytes() >= 4 * self.numel:
                self.storages.add(each.untyped_storage())
        self.most = max(self.most, len(self.storages))
        return output


@pytest.mark.parametrize(
    ("family", "settings", "ends_in_head"),
    [
        ("llama", {}, True),
        ("gemma2", {"final_logit_softcapping": 5.0}, False),
        ("cohere", {"logit_scale": 0.3}, False),
        ("granite", {"logits_scaling": 3.0}, False),
        ("granite", {"logits_scaling": 1.0}, True),
    ],
)
def test_scaled_and_capped_logits_are_trained_as_they_are(
    family: str, settings: dict[str, float], ends_in_head: bool
) -> None:
    torch.manual_seed(0)
    config = tiny_config(family)
    for name, value in settings.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config).eval()
    use_backend(model, "sdpa")
    batch = PackedCollator(sample_mean=True)([pack_of([5, 9, 1], 0), pack_of([7, 8], 3)])
    (planned,) = plan_step([batch], torch.device("cpu")).micro_batches
    found = torch.autograd.grad(loss_sum(model, planned), list(model.parameters()), allow_unused=True)
    logits = model(**model_inputs(model, batch)).logits
    losses = target_losses(logits, batch, planned.targets)
    expected = torch.dot(losses, planned.weights)
    assert loss_sum(model, planned).item() == pytest.approx(expected.item(), abs=1e-5)
    for one, other in zip(
        found, torch.autograd.grad(expected, list(model.parameters()), allow_unused=True), strict=True
    ):
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-5)
    assert (loss.head_of(model, model_inputs(model, batch)) is not None) == ends_in_head


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_losses_of_targets_are_those_of_samples_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model whose head ends it, some at a time; and of one that caps its logits."""
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 5 * VOCABULARY)
    model = tiny(family)
    packs = [pack_of([5, 9, 1], 0), pack_of([8], 1)]
    with torch.no_grad():
        expected = torch.cat([each for pack in packs for each in losses_alone(model, pack)])
    use_backend(model, "sdpa")
    found = losses_of(model, micro_batch_of(PackedCollator()(packs), torch.device("cpu")))
    assert len(found) > 10
    assert torch.allclose(found, expected, atol=1e-5)
