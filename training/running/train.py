"""A run of `python -m training train`: packs and model are checked, then trained, then written.

Which packs a step trains follows from its number and the seed alone, as do its random draws; so a run that was stopped
goes on exactly as it would have, and the same packs are trained on any number of ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

from pipeline.base.digests import hash_json
from pipeline.base.errors import BusyError, CheckError, ConfigError, StorageError
from pipeline.base.storage import free_bytes, free_text
from training.attention.interface import resolve_backend, use_backend
from training.checking.content import check_content, check_fits, check_segments
from training.checking.probe import CLEAN, probe
from training.models.adapters import add_lora, trained_state
from training.models.fsdp import divide, gathered
from training.models.pretrained import load_model, save_model
from training.options import TrainOptions
from training.place import Place, joined
from training.running import checkpoint, output
from training.running.determinism import deterministic_algorithms
from training.running.identity import run_identity
from training.running.loop import Loop
from training.running.output import TrainResult
from training.running.signals import deferred_signals
from training.shards import Shards, open_shards
from training.step import autocast_dtype

log = logging.getLogger(__name__)


def train(options: TrainOptions) -> TrainResult:
    """Train, or go on with a run that was stopped; a finished run's result is what it was.

    Raises `ConfigError`; `DataError`; `CheckError` if samples would not be trained as if alone, or gradients or
    weights are no numbers any more; `StorageError`; `BusyError` where another run writes the output, or another
    rank has ended.
    """
    with deterministic_algorithms(options.deterministic), joined() as place:
        options.check_ranks(place.num_ranks)
        if options.fsdp and not place.in_group:
            raise ConfigError("--fsdp divides a model over ranks: torchrun --nproc-per-node N -m training train …")
        shards = open_shards(options.shards, options.split)
        eval_shards = _open_evaluated(options, shards)
        for each in (shards, eval_shards):
            if each is not None:
                _check_same(each, place)
        identity = run_identity(options, shards, eval_shards) if place.is_first else {}
        if place.is_first:
            output.check_output(options.output, identity)
        finished = output.finished(options.output)
        if finished is not None:
            return finished
        autocast = autocast_dtype(options.dtype, place.device)
        model = _load(options, place, autocast)
        backend = resolve_backend(model, options.backend, autocast)
        _check(options, shards, [eval_shards] if eval_shards else [], model, backend, place)
        use_backend(model, backend)
        with output.claim(options.output, identity) if place.is_first else nullcontext():
            if place.is_first:
                _check_room(options, model)
            place.highest(0)  # other ranks wait, and read there what is to be gone on from
            log.info("%d steps; see %s", options.steps, options.output / output.LOG)
            with deferred_signals() as signals:
                trained = Loop(options, place, shards, eval_shards, model).run(signals)
                result = TrainResult(
                    status="trained",
                    output=options.output,
                    steps=options.steps,
                    loss=trained.loss,
                    backend=backend,
                    device=str(place.device),
                    seconds=trained.seconds,
                    skipped_steps=trained.skipped_steps,
                    evaluation=trained.evaluation,
                )
                weights = gathered(trained_state(model), place)
                if place.is_first:
                    save_model(model, options.model, options.output / output.MODEL, weights)
                    output.finish(result)
            return result


def _open_evaluated(options: TrainOptions, shards: Shards) -> Shards | None:
    """What is evaluated, if anything; warns if other tokens stand there for the same text than in what is trained."""
    if options.eval_shards is None:
        return None
    evaluated = open_shards(options.eval_shards, options.eval_split, option="--eval-split")
    tokenizers = [each.manifest.tokenizer if each.manifest else None for each in (shards, evaluated)]
    trained_by, evaluated_by = (each or None for each in tokenizers)
    if trained_by and evaluated_by and trained_by.xxh3_128 != evaluated_by.xxh3_128:
        log.warning(
            "--eval-shards %s were made by another tokenizer (%s) than --shards %s (%s): a loss says little there",
            evaluated.path,
            evaluated_by.name,
            shards.path,
            trained_by.name,
        )
    return evaluated


def _check_same(shards: Shards, place: Place) -> None:
    """Raise `BusyError` where ranks have opened others, as when a link moved on meanwhile."""
    own = hash_json([shards.manifest.run_id if shards.manifest else "", len(shards.packs), shards.capacity])
    number = int(own[:15], 16)
    if place.highest(number) != -place.highest(-number):
        raise BusyError(f"shards {shards.path}: other ranks have opened others, or another version; run it again")


def _load(options: TrainOptions, place: Place, autocast: torch.dtype | None) -> PreTrainedModel:
    """The model on this rank's device, or its part of it. Raises as `load_model`, `add_lora` and `divide`."""
    device = place.device
    if options.fsdp:  # the first rank alone reads it, and divides it with the others
        device = torch.device("cpu" if place.is_first else "meta")
    model = load_model(options.model, seed=options.seed, device=device)
    if options.lora is not None:
        add_lora(model, options.lora, base=options.model, seed=options.seed)
    if options.fsdp:
        divide(model, place)
        if autocast is not None and not options.gradient_checkpointing:
            log.warning(
                "--fsdp without --gradient-checkpointing: from each forward pass to its backward pass every rank keeps"
                " the weights of all layers in %s",
                str(autocast).removeprefix("torch."),
            )
    return model


def _check(
    options: TrainOptions,
    shards: Shards,
    evaluated: Sequence[Shards],
    model: PreTrainedModel,
    backend: str,
    place: Place,
) -> None:
    """Raise `DataError` or `CheckError` for what must not be trained, or cannot be evaluated."""
    joint = options.attention == "joint"
    if options.packs_per_step > len(shards.packs):
        log.warning(
            "--packs-per-step %d: there are %d packs, so a step trains some several times",
            options.packs_per_step,
            len(shards.packs),
        )
    for each in (shards, *evaluated):
        check_fits(each, model, joint=joint)
    check_segments(shards, model, backend, options.packs_per_forward, joint=joint, is_static=options.compile)
    if not options.check:
        log.warning("neither checksums nor whether samples see each other are checked")
        return
    if options.attention == "isolated":
        _check_isolated(model, backend, autocast_dtype(options.dtype, place.device))
    for each in (shards, *evaluated):
        check_content(each, model, place.rank, place.num_ranks)


def _check_isolated(model: PreTrainedModel, backend: str, autocast: torch.dtype | None) -> None:
    finding = probe(model, backend, autocast=autocast)
    if finding.verdict != CLEAN:
        layer = f" at {finding.layer}" if finding.layer else ""
        raise CheckError(
            f"samples would not be trained as if alone: {type(model).__name__} {finding.verdict}{layer}"
            f"{f' ({finding.message})' if finding.message else ''}; see `python -m training probe --model … --all`"
            " (--no-check trains all the same)"
        )


def _check_room(options: TrainOptions, model: PreTrainedModel) -> None:
    """Raise `StorageError` if the disk has no room for what the run will write: weights, or two checkpoints, each of
    weights and both moments of Adam."""
    weights = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    known = options.output / checkpoint.NAME
    size = (6 if options.save_every else 1) * weights - (known.stat().st_size if known.is_file() else 0)
    if free_bytes(options.output) < size:
        raise StorageError(
            f"{options.output} has no room for {size / 1e9:,.3f} GB of weights ({free_text(options.output)})"
        )
