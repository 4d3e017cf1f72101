from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from tests.training.forked import CONTEXT, free_port
from tests.training.samples import losses_alone, pack_of, tiny
from training import PackedCollator, train_step, use_backend
from training.loss import targets_of

PACKS = [
    pack_of([5, 9, 1], 0, trained=0.9),
    pack_of([14], 1, trained=0.2),
    pack_of([3, 3, 3, 3], 2, trained=0.0),
    pack_of([7, 8], 3, trained=0.5),
]
SPLITS = [[4], [1, 1, 1, 1], [2, 2], [1, 3]]


def micro_batches(split: list[int], **options: Any) -> list[dict[str, Any]]:
    collate = PackedCollator(**options)
    starts = [sum(split[:number]) for number in range(len(split))]
    return [collate(PACKS[start : start + size]) for start, size in zip(starts, split, strict=True)]


def stepped(split: list[int], **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The result of a step with gradients as they are, and these."""
    model = tiny()
    use_backend(model, "sdpa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = train_step(model, micro_batches(split, **options), optimizer, max_grad_norm=None)
    return result, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("sample_mean", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_the_loss_is_its_definition_however_packs_are_split(split: list[int], sample_mean: bool) -> None:
    model = tiny()
    losses = [each for pack in PACKS for each in losses_alone(model, pack)]
    with_targets = [each.mean() for each in losses if len(each)]
    expected = torch.stack(with_targets).mean() if sample_mean else torch.cat(losses).mean()
    expected.backward()
    result, gradients = stepped(split, sample_mean=sample_mean)
    assert float(result.loss) == pytest.approx(expected.item(), abs=1e-6)
    assert float(result.weight) == pytest.approx(len(with_targets) if sample_mean else len(torch.cat(losses)))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-5), name
    assert len(with_targets) < len(losses)  # some samples have none


def test_the_two_means_differ() -> None:
    assert float(stepped([4])[0].loss) != pytest.approx(float(stepped([4], sample_mean=True)[0].loss), abs=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_are_computed_for_targets_alone(compiled: bool) -> None:
    model = tiny()
    use_backend(model, "sdpa")
    computed: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: computed.append(inputs[0].shape[1]))
    if compiled:
        model.compile(backend="eager")
    batches = micro_batches([1, 3])
    train_step(model, batches, torch.optim.SGD(model.parameters(), lr=0.0))
    tokens = [each["input_ids"].shape[1] for each in batches]
    targets = [int((each["labels"] != -100).sum()) for each in batches]
    assert computed == (tokens if compiled else targets)
    assert sum(targets) < sum(tokens) / 2


def test_a_label_that_nothing_predicts_is_no_target() -> None:
    batch = micro_batches([4])[0]
    before = targets_of(batch)
    batch["labels"][0, 0] = 5
    assert torch.equal(targets_of(batch), before)


def test_batches_of_two_kinds_or_none_are_refused() -> None:
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(ValueError, match="all with sample_mean, or none"):
        train_step(model, [*micro_batches([4]), *micro_batches([4], sample_mean=True)], optimizer)
    with pytest.raises(ValueError, match="no batch"):
        train_step(model, [], optimizer)


def test_padding_changes_nothing() -> None:
    plain, gradients = stepped([2, 2])
    padded, others = stepped([2, 2], pad_to=40)
    assert float(plain.loss) == pytest.approx(float(padded.loss), abs=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-5), name


def test_a_step_without_targets_leaves_the_model_as_it_is() -> None:
    model = tiny()
    use_backend(model, "sdpa")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.5)
    result = train_step(model, PackedCollator()([pack_of([4, 4], trained=0.0)]), optimizer)
    assert float(result.loss) == 0
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_gradients_are_clipped_and_the_schedule_moves_on() -> None:
    model = tiny()
    use_backend(model, "sdpa")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    result = train_step(model, micro_batches([4]), optimizer, scheduler=scheduler, max_grad_norm=0.1)
    norm = torch.stack([each.grad.norm() for each in model.parameters() if each.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-3)
    assert float(result.grad_norm) > 0.2
    assert scheduler.get_last_lr() == [0.5]


def test_autocast_lowers_the_precision_of_the_forward_pass_only() -> None:
    model = tiny()
    use_backend(model, "sdpa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = train_step(model, micro_batches([4]), optimizer, autocast=torch.bfloat16)
    exact = stepped([4])[0]
    assert 0 < abs(float(result.loss) - float(exact.loss)) < 0.1
    assert all(each.dtype == torch.float32 for each in model.parameters())


def step_of_rank(rank: int, port: int, sample_mean: bool, accumulated: bool, result_path: Path) -> None:
    """One of two ranks, which have packs with different numbers of targets."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo")
    bare = tiny()
    use_backend(bare, "sdpa")
    model = torch.nn.parallel.DistributedDataParallel(bare)
    collate = PackedCollator(sample_mean=sample_mean)
    own = PACKS[:1] if rank == 0 else PACKS[1:]
    batches = [collate([pack]) for pack in own] if accumulated else [collate(own)]
    result = train_step(model, batches, torch.optim.SGD(model.parameters(), lr=0.0), max_grad_norm=None)
    if rank == 0:
        gradients = {name: each.grad for name, each in bare.named_parameters()}
        torch.save({"loss": result.loss, "weight": result.weight, "gradients": gradients}, result_path)
    del model
    gc.collect()  # or the process may abort when it exits
    distributed.destroy_process_group()


@pytest.mark.parametrize(("sample_mean", "accumulated"), [(False, True), (True, False)])
def test_two_ranks_with_unequal_targets_are_one(sample_mean: bool, accumulated: bool, tmp_path: Path) -> None:
    port = free_port()
    ranks = [
        CONTEXT.Process(target=step_of_rank, args=(rank, port, sample_mean, accumulated, tmp_path / "result.pt"))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    of_ranks = torch.load(tmp_path / "result.pt")
    result, gradients = stepped([4], sample_mean=sample_mean)
    assert float(of_ranks["loss"]) == pytest.approx(float(result.loss), abs=1e-6)
    assert float(of_ranks["weight"]) == pytest.approx(float(result.weight))
    for name, gradient in gradients.items():
        assert torch.allclose(of_ranks["gradients"][name], gradient, atol=1e-5), name
