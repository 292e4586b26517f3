import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from backend_cases import CONFIGS, OPTIMIZER, make_batch, train
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from optim.backend import AdamWSettings, Copy, ModelSource, Term
from optim.blocks import Block
from optim.errors import DivergedError, LayoutError, ModelError
from optim.layout import Layout
from optim.local import LocalBackend
from optim.mcore.backend import mcore_backend
from optim.mcore.parallel import process_world
from optim.mcore.schedule import split_terms


@contextmanager
def open_backend(name="llama", *, folder=None, **options):
    source = ModelSource(hf_config=CONFIGS[name], folder=folder, seed=3)
    settings = {"layout": Layout(), "optimizer": OPTIMIZER, "micro_batch_tokens": 40} | options
    with mcore_backend(source, **settings) as backend:
        yield backend


@contextmanager
def open_local():
    yield LocalBackend(ModelSource(hf_config=CONFIGS["llama"], seed=3), optimizer=OPTIMIZER)


def batch_of(num_rows, length, seed=0):
    return make_batch(num_rows, length, torch.Generator().manual_seed(seed))


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_process_that_opens_many_models_keeps_no_threads_of_the_closed_ones():
    with process_world():
        counts = []
        for _ in range(4):
            with open_backend():
                pass
            counts.append(len(list(Path("/proc/self/task").iterdir())))
    assert max(counts) < min(counts) + 17  # of the groups of one model


def gradients(backend, copy):
    """By Hugging Face name."""
    decoder = backend._decoders[copy]
    local = {n: p.grad for n, p in decoder.named_global_parameters().items() if p.grad is not None}
    return dict(backend._weights.full_tensors(decoder, local))


@pytest.mark.parametrize("name", CONFIGS)
def test_training_equals_plain_torch(name):
    with open_backend(name) as backend:
        ours = train(backend, num_steps=8)
    theirs = train(LocalBackend(ModelSource(hf_config=CONFIGS[name], seed=3), optimizer=OPTIMIZER), num_steps=8)
    assert ours.initial_digest == theirs.initial_digest
    assert ours.info.num_parameters == theirs.info.num_parameters
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad_norms, theirs.grad_norms, rtol=1e-5, atol=0)
    assert torch.equal(ours.clipped, theirs.clipped)
    assert ours.distance == pytest.approx(theirs.distance, rel=1e-4)
    assert ours.weights.keys() == theirs.weights.keys()
    for key, expected in theirs.weights.items():
        torch.testing.assert_close(ours.weights[key], expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_plain_torch(name):
    terms = [
        Term(copy=copy, batch=batch_of(5, 33), token_weight_B=torch.arange(5) / 50 + 0.01)
        for copy in (Copy.MODEL, Copy.AUX)
    ]
    local = LocalBackend(ModelSource(hf_config=CONFIGS[name], seed=3), optimizer=OPTIMIZER)
    with open_backend(name) as backend:
        torch.testing.assert_close(backend.forward_backward(terms), local.forward_backward(terms), rtol=1e-5, atol=1e-6)
        for copy in Copy:
            ours = gradients(backend, copy)
            theirs = dict(local._models[copy].named_parameters())
            assert ours.keys() == theirs.keys()
            for key, gradient in ours.items():
                scale = float(theirs[key].grad.abs().max())
                torch.testing.assert_close(gradient, theirs[key].grad, rtol=0, atol=1e-5 * scale)


def save_random_checkpoint(name, folder, **options):
    """A model of which no parameter is trivial, norms and biases included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[name]), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_keeps_its_function_and_comes_back_bit_for_bit(name, tmp_path):
    model = save_random_checkpoint(name, tmp_path)
    batch = batch_of(4, 40)
    with torch.no_grad():
        logits = model(input_ids=batch.tokens_BS[:, :-1]).logits
    loss_BS = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens_BS[:, 1:], reduction="none")
    expected_B = (loss_BS * batch.mask_BS).sum(1).double()
    with open_backend(name, folder=tmp_path) as backend:
        torch.testing.assert_close(backend.losses(Copy.MODEL, batch), expected_B, rtol=1e-5, atol=1e-5)
        expected_BS = (loss_BS * batch.mask_BS).double()
        torch.testing.assert_close(backend.token_losses(Copy.MODEL, batch), expected_BS, rtol=1e-5, atol=1e-5)
        exported = dict(backend.parameters(Copy.AUX))
    parameters = dict(model.named_parameters())
    assert exported.keys() == parameters.keys()
    assert all(torch.equal(exported[key], parameters[key]) for key in exported)


def test_a_checkpoint_in_several_files_is_read(tmp_path):
    model = save_random_checkpoint("llama", tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with open_backend(folder=tmp_path) as backend:
        exported = dict(backend.parameters(Copy.MODEL))
    assert all(torch.equal(exported[key], tensor) for key, tensor in model.named_parameters())


def test_a_checkpoint_without_the_models_prefix_is_read(tmp_path):
    model = save_random_checkpoint("gpt2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({key.removeprefix("transformer."): t for key, t in tensors.items()}, tmp_path / "model.safetensors")
    with open_backend("gpt2", folder=tmp_path) as backend:
        exported = dict(backend.parameters(Copy.MODEL))
    assert all(torch.equal(exported[key], tensor) for key, tensor in model.named_parameters())


def test_a_checkpoint_that_does_not_fit_its_configuration_is_refused(tmp_path):
    save_random_checkpoint("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    stored = tmp_path / "model.safetensors"

    save_file({k: t for k, t in tensors.items() if k != "lm_head.weight"}, stored)
    with pytest.raises(ModelError, match=r"no tensor 'lm_head\.weight'"), open_backend(folder=tmp_path):
        pass
    save_file(tensors | {"model.layers.0.self_attn.o_proj.bias": torch.zeros(64)}, stored)
    with pytest.raises(ModelError, match=r"1 tensors .*o_proj\.bias"), open_backend(folder=tmp_path):
        pass
    save_file(tensors | {"model.norm.weight": torch.ones(65)}, stored)
    with pytest.raises(ModelError, match=r"model\.norm\.weight.* \(65,\).* \(64,\)"), open_backend(folder=tmp_path):
        pass
    save_file(tensors | {"model.norm.weight": torch.ones(64, dtype=torch.int8)}, stored)
    with (
        pytest.raises(ModelError, match=r"model\.norm\.weight.* is int8, .*unquantised"),
        open_backend(folder=tmp_path),
    ):
        pass
    save_file(tensors | {"model.norm.weight": torch.full((64,), float("nan"))}, stored)
    with pytest.raises(ModelError, match=r"model\.norm\.weight.* not finite"), open_backend(folder=tmp_path):
        pass
    stored.write_bytes(stored.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot read"), open_backend(folder=tmp_path):
        pass
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": ')
    with pytest.raises(ModelError, match=r"index\.json is damaged"), open_backend(folder=tmp_path):
        pass
    save_file({"other": torch.zeros(1)}, stored)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, stored.name)}))
    with pytest.raises(ModelError, match=r"cannot read tensor .*model\.safetensors"), open_backend(folder=tmp_path):
        pass
    shutil.rmtree(tmp_path)
    with pytest.raises(ModelError, match="save_pretrained"), open_backend(folder=tmp_path):
        pass


def test_sizes_that_do_not_go_together_are_refused():
    source = ModelSource(hf_config=CONFIGS["llama"] | {"hidden_size": 65})
    opened = mcore_backend(source, layout=Layout(), optimizer=OPTIMIZER, micro_batch_tokens=40)
    with pytest.raises(ModelError, match=r"(?s)transformers does not accept this 'llama' .*hidden size \(65\)"), opened:
        pass


@pytest.mark.parametrize(
    ("block", "graphless"),
    [
        (Block(layers=frozenset({2}), edges=False), {0, 1}),
        (Block(layers=frozenset({0, 3}), edges=False), set()),
        (Block(layers=frozenset(), edges=True), set()),
        (Block(layers=frozenset({3}), edges=False), {0, 1, 2}),
    ],
)
def test_only_the_block_trains_and_nothing_below_it_keeps_a_graph(block, graphless):
    term = Term(copy=Copy.MODEL, batch=batch_of(3, 9), token_weight_B=torch.ones(3))
    with open_backend() as backend:
        before = dict(backend.parameters(Copy.MODEL))
        backend.forward_backward([term])
        backend.set_block(block)
        decoder = backend._decoders[Copy.MODEL]
        assert {i for i, layer in enumerate(decoder.decoder.layers) if not layer.needs_graph} == graphless
        backend.forward_backward([term])
        in_block = {name for name in before if is_in(block, name)}
        assert set(gradients(backend, Copy.MODEL)) == in_block
        backend.update(Copy.MODEL, learning_rate=1e-3)
        assert {name for name, _, _ in backend._optimizers[Copy.MODEL].states()} == set(backend._active[Copy.MODEL])
        after = dict(backend.parameters(Copy.MODEL))
        assert {name for name in after if not torch.equal(after[name], before[name])} == in_block
        assert not gradients(backend, Copy.MODEL)
        assert backend.distance() > 0


@pytest.mark.parametrize("open_one", [open_backend, open_local], ids=["megatron", "local"])
def test_a_copy_that_restarts_goes_the_way_of_the_other(open_one):
    """Moments included: equal gradients then move both alike; and the copies share no memory."""
    terms = [Term(copy=copy, batch=batch_of(3, 9), token_weight_B=torch.ones(3) / 9) for copy in Copy]
    with open_one() as backend:
        backend.forward_backward(terms[:1])
        backend.update(Copy.MODEL, learning_rate=1e-2)
        for _ in range(3):
            backend.forward_backward(terms[1:])
            backend.update(Copy.AUX, learning_rate=1e-3)
        backend.restart(Copy.MODEL)
        assert backend.distance() == 0
        backend.forward_backward(terms)
        for copy in Copy:
            backend.update(copy, learning_rate=1e-3)
        assert backend.distance() == 0
        before = dict(backend.parameters(Copy.AUX))
        backend.forward_backward(terms[:1])
        backend.update(Copy.MODEL, learning_rate=1e-3)
        assert backend.distance() > 0
        assert all(torch.equal(tensor, before[name]) for name, tensor in backend.parameters(Copy.AUX))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_gated_activation_leaves_no_tensor_of_its_own_behind(name):
    kept = []
    term = Term(copy=Copy.MODEL, batch=batch_of(3, 9), token_weight_B=torch.ones(3))
    width = CONFIGS[name]["intermediate_size"]
    with open_backend(name) as backend:
        backend.set_block(Block(layers=frozenset({0}), edges=True))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            backend.forward_backward([term])
    shared = {t.untyped_storage().data_ptr() for t in kept if t.dim() == 3 and t.shape[-1] == 2 * width}
    alone = {t.untyped_storage().data_ptr() for t in kept if t.dim() == 3 and t.shape[-1] == width}
    # one input for each of the four layers, and the product that the active layer's next weight gradient needs
    assert (len(shared), len(alone - shared)) == (4, 1)


def is_in(block, name):
    parts = name.split(".")
    return int(parts[2]) in block.layers if "layers" in parts else block.edges


def test_losses_do_not_depend_on_micro_batches_or_padding():
    batch = batch_of(7, 20)
    wider = make_batch(7, 30, torch.Generator())
    wider.tokens_BS[:, :21], wider.mask_BS[:] = batch.tokens_BS, 0
    wider.mask_BS[:, :20] = batch.mask_BS
    found = []
    for tokens in (1, 19, 40, 1000):
        with open_backend(micro_batch_tokens=tokens) as backend:
            found += [backend.losses(Copy.MODEL, batch), backend.losses(Copy.MODEL, wider)]
    for loss_B in found[1:]:
        torch.testing.assert_close(loss_B, found[0], rtol=1e-6, atol=1e-6)
    assert found[0][0] == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_gradients_do_not_depend_on_what_shares_a_pack(name):
    term = Term(copy=Copy.MODEL, batch=batch_of(7, 20), token_weight_B=torch.arange(7) / 50 + 0.01)
    found = []
    for tokens in (1, 1000):
        with open_backend(name, micro_batch_tokens=tokens) as backend:
            backend.forward_backward([term])
            found.append(gradients(backend, Copy.MODEL))
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=0, atol=1e-5 * float(expected.abs().max()) + 1e-8)


def test_gradients_of_calls_add_up_and_losses_leave_them_alone():
    first = Term(copy=Copy.MODEL, batch=batch_of(3, 9), token_weight_B=torch.rand(3))
    second = Term(copy=Copy.MODEL, batch=batch_of(4, 12, seed=1), token_weight_B=torch.rand(4))
    with open_backend() as backend:
        backend.forward_backward([first, second])
        together = gradients(backend, Copy.MODEL)
    with open_backend() as backend:
        backend.forward_backward([first])
        backend.losses(Copy.MODEL, second.batch)
        backend.forward_backward([second])
        torch.testing.assert_close(gradients(backend, Copy.MODEL), together, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_recomputing_layers_changes_no_bit(name):
    runs = []
    for recompute in (False, True):
        with open_backend(name, recompute=recompute) as backend:
            runs.append(train(backend, num_steps=4))
    assert torch.equal(runs[1].losses, runs[0].losses)
    assert torch.equal(runs[1].grad_norms, runs[0].grad_norms)
    assert all(torch.equal(runs[1].weights[key], expected) for key, expected in runs[0].weights.items())


def test_recomputing_layers_keeps_fewer_bytes_for_the_backward_pass():
    term = Term(copy=Copy.MODEL, batch=batch_of(6, 60), token_weight_B=torch.ones(6))
    kept = []
    for recompute in (False, True):
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            open_backend(recompute=recompute, micro_batch_tokens=1000) as backend,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            backend.forward_backward([term])
        kept.append(sum(saved.values()))
    assert kept[1] < 0.5 * kept[0]


def test_packs_hold_whole_rows_and_no_padding():
    batch = batch_of(9, 30)
    term = Term(copy=Copy.MODEL, batch=batch, token_weight_B=torch.ones(9))
    length_B = batch.mask_BS.sum(dim=1).long()
    with open_backend() as backend:
        packs = split_terms([term], backend._groups, micro_batch_tokens=50, multiple=1, device=torch.device("cpu"))
    assert sum(len(pack.mask_T) for pack in packs) == int(length_B.sum())
    assert all(len(pack.mask_T) <= 50 for pack in packs)
    assert len(packs) < (length_B > 0).sum()
    slots = torch.cat([pack.slots_B for pack in packs])
    assert sorted(slots.tolist()) == (length_B > 0).nonzero().flatten().tolist()
    for pack in packs:
        inputs = torch.split(pack.inputs_T, pack.length_B.tolist())
        for slot, row in zip(pack.slots_B.tolist(), inputs, strict=True):
            assert torch.equal(row, batch.tokens_BS[slot, : length_B[slot]])


def test_bfloat16_follows_float32():
    runs = []
    for dtype in ("float32", "bfloat16"):
        with open_backend(dtype=dtype, optimizer=AdamWSettings(eps=1e-4)) as backend:
            runs.append(train(backend, num_steps=4))
    assert runs[1].weights["model/model.norm.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(runs[1].losses, runs[0].losses, rtol=2e-2, atol=2e-2)


def test_divergence_is_an_error():
    weight_B = torch.tensor([0.0, float("inf"), 1.0])
    with open_backend() as backend:
        backend.forward_backward([Term(copy=Copy.AUX, batch=batch_of(3, 9), token_weight_B=weight_B)])
        with pytest.raises(DivergedError, match="gradient norm of aux_model"):
            backend.update(Copy.AUX, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "'mixtral' are not supported; supported are gemma2, gpt2, llama"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type must be one of"),
    ],
)
def test_models_that_would_be_computed_wrongly_are_refused(change, message):
    source = ModelSource(hf_config=CONFIGS["llama"] | change)
    with (
        pytest.raises(ModelError, match=message),
        mcore_backend(source, layout=Layout(), optimizer=OPTIMIZER, micro_batch_tokens=40),
    ):
        pass


def test_layouts_that_cannot_be_are_refused_before_anything_starts():
    with pytest.raises(LayoutError, match="tensor_parallel=3"), open_backend(layout=Layout(tensor_parallel=3)):
        pass
    with (
        pytest.raises(LayoutError, match="needs 2 workers, but there are 1"),
        open_backend(layout=Layout(tensor_parallel=2)),
    ):
        pass
    assert not torch.distributed.is_initialized()


def test_a_second_backend_in_the_process_is_refused_and_the_first_lives_on():
    with open_backend() as backend:
        with pytest.raises(LayoutError, match="runs a Megatron model already"), open_backend():
            pass
        assert backend.losses(Copy.MODEL, batch_of(2, 5)).shape == (2,)


def test_the_process_is_left_as_it_was():
    megatron_module = sys.modules["megatron.core.transformer.transformer_layer"]
    random_state = torch.get_rng_state()
    precision = torch.backends.mkldnn.matmul.fp32_precision
    with open_backend():
        shimmed = megatron_module.torch
    assert (shimmed is not torch) == (not torch.cuda.is_available())
    assert megatron_module.torch is torch
    assert torch.backends.mkldnn.matmul.fp32_precision == precision
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not torch.distributed.is_initialized()
