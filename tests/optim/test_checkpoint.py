"""Checkpoints: complete or not there, of this run or refused, and equal training afterwards in any layout."""

from __future__ import annotations

import errno
import json
import resource
import warnings
from dataclasses import replace
from pathlib import Path

import backend_cases
import pytest
import torch
from backend_cases import CONFIGS, OPTIMIZER, losses_of_steps, make_batch
from transformers import AutoModelForCausalLM

from optim.backend import Copy, ModelSource
from optim.checkpoint import Checkpoints
from optim.errors import CheckpointError
from optim.launch import launch
from optim.layout import Layout
from optim.local import LocalBackend
from optim.state import SolverState

IDENTITY = {"learn": {"steps": 9, "penalty": 1.0}, "prior": [0.5, 0.5]}


class OneFile:
    """Something to save, whose content is told by a number."""

    def __init__(self, number=0, error=None):
        self.number = number
        self.error = error

    def save(self, folder):
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(str(self.number) * 100)
        if self.error:
            raise self.error


def state_at(step):
    prior_D = torch.tensor([0.25, 0.75], dtype=torch.float64)
    noise_D = torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    initial = SolverState.initial(prior_D)
    logits = replace(initial.data_weights, logits_D=noise_D.log(), first_D=noise_D / 3, num_updates=step)
    return replace(initial, step=step, data_weights=logits, tokens_D=noise_D * 7, pending=(noise_D / 7,))


def newest(checkpoints):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return checkpoints.newest()


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", identity=IDENTITY, keep=2)


def test_no_checkpoint(checkpoints):
    assert newest(checkpoints) is None


def test_the_newest_comes_back_bit_for_bit_and_the_oldest_go(checkpoints):
    for step in (3, 6, 12):
        checkpoints.save(OneFile(step), state_at(step), {"trajectory_bytes": step})
    found = newest(checkpoints)
    assert found.extra == {"trajectory_bytes": 12}
    assert (found.folder / "model" / "weights").read_text().startswith("12")
    expected = state_at(12)
    assert found.state.step == 12
    assert torch.equal(found.state.data_weights.logits_D, expected.data_weights.logits_D)
    assert torch.equal(found.state.data_weights.first_D, expected.data_weights.first_D)
    assert torch.equal(found.state.pending[0], expected.pending[0])
    assert sorted(path.name for path in found.folder.parent.iterdir()) == ["step-000000006", "step-000000012"]


def cut(folder):
    path = folder / "model" / "weights"
    path.write_text(path.read_text()[:50])


DAMAGE = {
    "a cut file": cut,
    "a lost file": lambda folder: (folder / "model" / "weights").unlink(),
    "a cut state": lambda folder: (folder / "state.json").write_text((folder / "state.json").read_text()[:40]),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "another state": lambda folder: (folder / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_checkpoint_is_passed_over(checkpoints, damage):
    for step in (3, 6):
        checkpoints.save(OneFile(step), state_at(step), {})
    damage(checkpoints.newest().folder)
    with pytest.warns(UserWarning, match="step-000000006 is damaged"):
        assert checkpoints.newest().state.step == 3
    damage(newest_folder(checkpoints, 3))
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"),
    ):
        checkpoints.newest()


@pytest.mark.parametrize("keep", [1, 2])
def test_those_that_were_passed_over_go_when_the_run_has_gone_on(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path / "checkpoints", identity=IDENTITY, keep=keep)
    checkpoints.save(OneFile(3), state_at(3), {})
    if keep == 1:
        Checkpoints(tmp_path / "checkpoints", identity=IDENTITY, keep=2).save(OneFile(9), state_at(9), {})
    else:
        checkpoints.save(OneFile(9), state_at(9), {})
    (newest_folder(checkpoints, 9) / "state.json").write_text("[]")
    checkpoints.save(OneFile(6), state_at(6), {})
    assert newest(checkpoints).state.step == 6
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == [
        f"step-{step:09d}" for step in (3, 6)[-keep:]
    ]


def newest_folder(checkpoints, step):
    return next(path for path in Path(checkpoints._folder).iterdir() if path.name == f"step-{step:09d}")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "denied")])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(checkpoints, error):
    checkpoints.save(OneFile(3), state_at(3), {})
    with pytest.raises(CheckpointError, match="the checkpoint of step 6 cannot be written to"):
        checkpoints.save(OneFile(6, error), state_at(6), {})
    assert newest(checkpoints).state.step == 3
    assert [path.name for path in newest(checkpoints).folder.parent.iterdir()] == ["step-000000003"]


def test_a_disk_that_is_full_in_the_middle_of_a_tensor_leaves_the_one_before(checkpoints):
    """For real: this process may not write files of more than 64 KiB."""
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["llama"], seed=3), optimizer=OPTIMIZER)
    checkpoints.save(backend, state_at(3), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 6 cannot be written to .*File too large.*; free space there"):
            checkpoints.save(backend, state_at(6), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest(checkpoints).state.step == 3
    assert [path.name for path in newest(checkpoints).folder.parent.iterdir()] == ["step-000000003"]


def test_what_a_killed_writer_left_is_no_checkpoint(checkpoints):
    checkpoints.save(OneFile(3), state_at(3), {})
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(OneFile(6, KeyboardInterrupt()), state_at(6), {})
    assert newest(checkpoints).state.step == 3
    checkpoints.save(OneFile(6), state_at(6), {})
    assert newest(checkpoints).state.step == 6


def test_a_checkpoint_of_another_run_is_refused_by_name(checkpoints, tmp_path):
    checkpoints.save(OneFile(3), state_at(3), {})
    other = Checkpoints(tmp_path / "checkpoints", identity=IDENTITY | {"learn": {"steps": 9, "penalty": 2.0}})
    with pytest.raises(CheckpointError, match=r"made with learn\.penalty=1\.0, but this run has 2\.0"):
        other.newest()


# backends ---------------------------------------------------------------------------------------------------------

TP2 = Layout(tensor_parallel=2)
PP2_DP2 = Layout(pipeline_parallel=2, data_parallel=2)


def run(target, payload, layout):
    """What every rank of `layout` returned; they agree. One rank runs in this process."""
    if layout.world_size == 1:
        return getattr(backend_cases, target)(payload)
    results = launch(
        f"backend_cases:{target}",
        payload,
        world_size=layout.world_size,
        threads=1,
        preload=("optim.mcore.backend",),
    )
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize(("model", "moments"), [("qwen3-tied", "keep"), ("gpt2", "drop"), ("gemma2", "offload")])
def test_a_resumed_run_repeats_bit_for_bit(tmp_path, model, moments):
    whole = run("train_and_save", (model, Layout(), moments, None, 8, tmp_path / "whole"), Layout())
    run("train_and_save", (model, Layout(), moments, None, 4, tmp_path / "half"), Layout())
    again = run("train_and_save", (model, Layout(), moments, (tmp_path / "half", 4), 8, tmp_path / "again"), Layout())
    assert again == whole


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [(PP2_DP2, TP2), pytest.param(TP2, PP2_DP2, marks=pytest.mark.slow)],
    ids=str,
)
def test_another_layout_goes_on_where_one_stopped(tmp_path, saved_by, loaded_by):
    model = "qwen3-tied"
    whole = run("train_and_save", (model, Layout(), "keep", None, 8, tmp_path / "whole"), Layout())
    run("train_and_save", (model, saved_by, "keep", None, 4, tmp_path / "half"), saved_by)
    order = (model, loaded_by, "keep", (tmp_path / "half", 4), 8, tmp_path / "again")
    again = run("train_and_save", order, loaded_by)
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-6)
    assert moment_names(tmp_path / "again") == moment_names(tmp_path / "whole")


def moment_names(folder):
    return set(json.loads((folder / "optimizer" / "model.safetensors.index.json").read_text())["weight_map"])


def test_w_is_a_hugging_face_model(tmp_path):
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["llama"], seed=3), optimizer=OPTIMIZER)
    run("train_and_save", ("llama", PP2_DP2, "drop", None, 2, tmp_path / "saved"), PP2_DP2)
    backend.load(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / "model", dtype="float32")
    batch = make_batch(3, 9, torch.Generator().manual_seed(0))
    for name, parameter in backend.parameters(Copy.MODEL):
        assert torch.equal(parameter, model.get_parameter(name))
    assert torch.isfinite(backend.losses(Copy.MODEL, batch)).all()


def test_the_plain_backend_goes_on_with_what_megatron_saved(tmp_path):
    whole = run("train_and_save", ("llama", Layout(), "keep", None, 8, tmp_path / "whole"), Layout())
    run("train_and_save", ("llama", TP2, "keep", None, 4, tmp_path / "half"), TP2)
    optimizer = replace(OPTIMIZER, moments_on_switch="keep")
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["llama"], seed=3), optimizer=optimizer)
    backend.load(tmp_path / "half")
    backend.save(tmp_path / "copied")
    backend.load(tmp_path / "copied")
    torch.testing.assert_close(losses_of_steps(backend, 4, 8), whole, rtol=1e-5, atol=1e-6)
