from __future__ import annotations

import gc
import os
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel.style import ParallelStyle
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.base.errors import ConfigError
from tests.training.forked import CONTEXT, free_port
from tests.training.samples import VOCABULARY, losses_alone, pack_of, tiny
from training import PackedCollator, train_step, use_backend
from training.loss import head_of, targets_of
from training.models.fsdp import divide
from training.place import Place
from training.plan import accumulate, loss_sum, plan_step, scale

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


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_logits_are_computed_for_targets_alone(compiled: bool, static: bool) -> None:
    model = tiny()
    use_backend(model, "sdpa")
    computed: list[int] = []
    graphs: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, _: Any) -> Any:
        def run(*arguments: Any) -> Any:
            outputs = graph.forward(*arguments)
            computed.extend(each.shape[1] for each in outputs if each.shape[2:] == (VOCABULARY,))
            return outputs

        graphs.append(graph)
        return run

    if compiled:
        torch.compiler.reset()
        model.compile(backend=counted, fullgraph=True, dynamic=False)
    else:
        model.lm_head.register_forward_pre_hook(lambda _, inputs: computed.append(inputs[0].shape[1]))
    batches = micro_batches([1, 3], **({"pad_to": 60, "max_targets": 40} if static else {}))
    train_step(model, batches, torch.optim.SGD(model.parameters(), lr=0.0))
    tokens = [each["input_ids"].shape[1] for each in batches]
    targets = [len(targets_of(each)) for each in batches]
    assert computed[-2:] == (tokens if compiled and not static else targets)
    assert sum(targets) < sum(tokens) * 0.7
    assert len(graphs) == (0 if not compiled else 1 if static else 2)


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


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_that_is_no_number_changes_nothing(fused: bool) -> None:
    """A fused optimizer learns it on the device, and nothing waits for that."""
    model, other = tiny(), tiny()
    for each in (model, other):
        use_backend(each, "sdpa")
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2, fused=fused) for each in (model, other)]
    first, second = micro_batches([1, 3], targets=True)
    for each, optimizer in zip((model, other), optimizers, strict=True):
        assert not train_step(each, first, optimizer).skipped
    hook = model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    Waits.names.clear()
    with Waits():  # type: ignore[no-untyped-call]
        result = train_step(model, second, optimizers[0])
    assert Waits.names == (set() if fused else {"_local_scalar_dense"})
    assert result.skipped
    assert not result.grad_norm.isfinite()
    hook.remove()
    for each, optimizer in zip((model, other), optimizers, strict=True):
        train_step(each, second, optimizer)
    for (name, one), (_, two) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(one, two), name


class Waits(TorchDispatchMode):
    """What would wait for a device; attention apart, whose reference has to."""

    names: ClassVar[set[str]] = set()

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), named: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "item"):
            self.names.add(name)
        return function(*arguments, **(named or {}))


def test_half_precision_parameters_are_warned_of_once() -> None:
    model = tiny().bfloat16()
    use_backend(model, "sdpa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.warns(UserWarning, match="trained in bfloat16.*dtype=torch.float32"):
        train_step(model, micro_batches([4]), optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_step(model, micro_batches([4]), optimizer)
        stepped([4])


class Engine(torch.nn.Module):
    """What DeepSpeed makes of a model: a module that takes anything, with the model in it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


def test_a_model_in_an_engine_is_trained_as_it_is() -> None:
    use_backend(model := tiny(), "sdpa")
    engine = Engine(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = train_step(engine, micro_batches([4]), optimizer, max_grad_norm=None)
    expected, gradients = stepped([4])
    assert float(result.loss) == float(expected.loss)
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert found.keys() == gradients.keys()
    assert all(torch.equal(gradients[name], each) for name, each in found.items())
    assert head_of(model, {}) is model.lm_head  # as it was asked in the step


def test_a_row_that_is_divided_over_ranks_is_refused() -> None:
    batch = micro_batches([4])[0]
    half = {**batch, "input_ids": batch["input_ids"][:, :20], "labels": batch["labels"][:, :20]}
    with pytest.raises(ValueError, match="not made for context parallelism"):
        plan_step([half], torch.device("cpu"))


def test_autocast_lowers_the_precision_of_the_forward_pass_only() -> None:
    model = tiny()
    use_backend(model, "sdpa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: list[torch.dtype] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    result = train_step(model, micro_batches([4]), optimizer, autocast=torch.bfloat16)
    assert set(seen) == {torch.bfloat16}  # embeddings, and all that is added to them
    exact = stepped([4])[0]
    assert 0 < abs(float(result.loss) - float(exact.loss)) < 0.1
    assert all(each.dtype == torch.float32 for each in model.parameters())


def step_of_rank(rank: int, port: int, wrapper: str, sample_mean: bool, accumulated: bool, result_path: Path) -> None:
    """One of two ranks, which have packs with different numbers of targets."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo")
    bare = tiny()
    use_backend(bare, "sdpa")
    collate = PackedCollator(sample_mean=sample_mean)
    # FSDP2 wants as many forward passes of every rank.
    cut = 2 if wrapper == "fsdp" else 1
    own = PACKS if wrapper == "tp" else PACKS[:cut] if rank == 0 else PACKS[cut:]
    batches = [collate([pack]) for pack in own] if accumulated else [collate(own)]
    found: dict[str, Any]
    if wrapper == "fsdp":
        found = by_parts(bare, batches)
    elif wrapper == "tp":
        found = by_tensors(bare, batches)
    else:
        model = torch.nn.parallel.DistributedDataParallel(bare)
        result = train_step(model, batches, torch.optim.SGD(model.parameters(), lr=0.0), max_grad_norm=None)
        gradients = {name: each.grad for name, each in bare.named_parameters()}
        found = {"loss": result.loss, "weight": result.weight, "gradients": gradients}
        del model
    if rank == 0:
        torch.save(found, result_path)
    gc.collect()  # or the process may abort when it exits
    distributed.destroy_process_group()


def by_parts(model: Any, batches: list[dict[str, Any]]) -> dict[str, Any]:
    """A step of a loop of its own, with the model divided over ranks: every layer, the head, and the rest."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp", "cp"))
    cpu, rank = torch.device("cpu"), distributed.get_rank()
    with pytest.raises(ConfigError, match="another on other ranks"):
        divide(tiny("gpt2" if rank else "llama"), Place(rank, 2, cpu, in_group=True))
    for part in [*model.model.layers, model.lm_head, model]:
        fully_shard(part, mesh=mesh["dp"])
    with pytest.raises(ValueError, match=r"\(cp\): packs are not made for context parallelism"):
        plan_step(batches, cpu, mesh)
    plan = plan_step(batches, cpu, mesh["dp"])
    total = torch.zeros((), dtype=torch.float64)
    for micro_batch in accumulate(model, plan):
        lost = loss_sum(model, micro_batch)
        scale(lost, plan).backward()
        total += lost.detach()
    gradients = {name: each.grad.full_tensor() for name, each in model.named_parameters()}
    again = train_step(model, batches, torch.optim.AdamW(model.parameters()), max_grad_norm=None, group=mesh["dp"])
    norm = torch.stack([each.norm() for each in gradients.values()]).norm()
    assert float(again.grad_norm) == pytest.approx(float(norm), rel=1e-5)
    assert head_of(model, {}) is model.lm_head  # as it was asked before
    before = [each.to_local().clone() for each in model.parameters()]
    if rank == 0:
        model.model.norm.register_forward_hook(lambda _, __, output: output * float("nan"))
    assert train_step(model, batches, torch.optim.AdamW(model.parameters()), group=mesh["dp"]).skipped
    assert all(torch.equal(one, each.to_local()) for one, each in zip(before, model.parameters(), strict=True))
    return {"loss": plan.mean(total), "weight": plan.weight, "gradients": gradients}


def by_tensors(model: Any, batches: list[dict[str, Any]]) -> dict[str, Any]:
    """A step of two ranks that compute the same packs together: of some matrices, and of the head, each has a half."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    halves: dict[str, ParallelStyle] = {"model.layers.*.self_attn.o_proj": RowwiseParallel()}
    halves |= {f"model.layers.*.self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    parallelize_module(model, mesh["tp"], halves | {"lm_head": ColwiseParallel(output_layouts=Replicate())})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = train_step(model, batches, optimizer, max_grad_norm=None, group=mesh["dp"])
    gradients = {
        name: each.grad.full_tensor() if isinstance(each.grad, DTensor) else each.grad
        for name, each in model.named_parameters()
    }
    norm = torch.stack([each.norm() for each in gradients.values()]).norm()
    assert float(result.grad_norm) == pytest.approx(float(norm), rel=1e-5)
    clipped = train_step(model, batches, optimizer, max_grad_norm=float(norm) / 2, group=mesh["dp"])
    assert float(clipped.grad_norm) == pytest.approx(float(norm), rel=1e-5)
    for name, each in model.named_parameters():
        now = each.grad.full_tensor() if isinstance(each.grad, DTensor) else each.grad
        assert torch.allclose(now, gradients[name] / 2, atol=1e-5), name
    assert not head_of(model, {})
    use_backend(parted := tiny(), "sdpa")
    parallelize_module(parted, mesh["tp"], {"lm_head": ColwiseParallel()})
    with pytest.raises(ValueError, match=f"the logits of {VOCABULARY // 2} of {VOCABULARY} ids"):
        train_step(parted, batches, optimizer, group=mesh["dp"])
    return {"loss": result.loss, "weight": result.weight, "gradients": gradients}


@pytest.mark.parametrize(
    ("wrapper", "sample_mean", "accumulated"),
    [("ddp", False, True), ("ddp", True, False), ("fsdp", True, True), ("tp", True, True)],
)
def test_two_ranks_with_unequal_targets_are_one(
    wrapper: str, sample_mean: bool, accumulated: bool, tmp_path: Path
) -> None:
    port = free_port()
    options = (wrapper, sample_mean, accumulated, tmp_path / "result.pt")
    ranks = [CONTEXT.Process(target=step_of_rank, args=(rank, port, *options)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    of_ranks = torch.load(tmp_path / "result.pt")
    result, gradients = stepped([4], sample_mean=sample_mean)
    assert float(of_ranks["loss"]) == pytest.approx(float(result.loss), abs=1e-6)
    assert float(of_ranks["weight"]) == pytest.approx(float(result.weight))
    for name, gradient in gradients.items():
        assert torch.allclose(of_ranks["gradients"][name], gradient, atol=1e-5), name
