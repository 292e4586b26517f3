import pytest
import torch
from backend_cases import CONFIGS, OPTIMIZER, make_batch
from transformers import AutoConfig, AutoModelForCausalLM

from optim.backend import AdamWSettings, Copy, ModelSource, Term
from optim.blocks import Block
from optim.errors import DivergedError, ModelError
from optim.local import LocalBackend

SOURCE = ModelSource(hf_config=CONFIGS["llama"], seed=3)


def batch_of(num_rows, length, seed=0):
    return make_batch(num_rows, length, torch.Generator().manual_seed(seed))


def gradients(backend, copy):
    return {name: p.grad for name, p in backend._models[copy].named_parameters() if p.grad is not None}


def test_losses_and_gradients_follow_the_formula_of_the_term():
    backend = LocalBackend(SOURCE, optimizer=OPTIMIZER, dtype="float64", micro_batch_rows=2)
    batch, weight_B = batch_of(5, 17), torch.rand(5)
    (loss_B,) = backend.forward_backward([Term(copy=Copy.MODEL, batch=batch, token_weight_B=weight_B)])
    model = backend._models[Copy.MODEL]
    logits_BSV = model(input_ids=batch.tokens_BS[:, :-1]).logits
    chosen_BS = logits_BSV.gather(2, batch.tokens_BS[:, 1:, None]).squeeze(2)
    expected_B = ((logits_BSV.logsumexp(2) - chosen_BS) * batch.mask_BS).sum(1)
    torch.testing.assert_close(loss_B, expected_B.detach(), rtol=1e-12, atol=1e-12)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad((expected_B * weight_B).sum(), parameters)
    torch.testing.assert_close(
        gradients(backend, Copy.MODEL), dict(zip(names, expected, strict=True)), rtol=1e-9, atol=1e-12
    )
    assert not gradients(backend, Copy.AUX)


def test_gradients_equal_finite_differences_of_the_losses():
    # GPT-2, because transformers computes the norms of the others in float32 whatever the dtype
    source = ModelSource(hf_config=CONFIGS["gpt2"], seed=3)
    backend = LocalBackend(source, optimizer=OPTIMIZER, dtype="float64")
    batch, weight_B = batch_of(4, 11), torch.rand(4, dtype=torch.float64)
    backend.forward_backward([Term(copy=Copy.AUX, batch=batch, token_weight_B=weight_B)])
    generator = torch.Generator().manual_seed(1)
    parameters = dict(backend._models[Copy.AUX].named_parameters())
    direction = {n: torch.randn(p.shape, generator=generator).double() for n, p in parameters.items()}
    slope = sum((parameters[n].grad * d).sum() for n, d in direction.items())
    values = []
    for shift in (1e-6, -2e-6):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(direction[name], alpha=shift)
        values.append(float(weight_B @ backend.losses(Copy.AUX, batch)))
    assert float(slope) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


def test_gradients_of_terms_and_calls_add_up():
    first, second = batch_of(3, 9), batch_of(4, 12, seed=1)
    terms = [Term(copy=Copy.MODEL, batch=b, token_weight_B=torch.rand(b.num_rows)) for b in (first, second)]
    together, apart = (LocalBackend(SOURCE, optimizer=OPTIMIZER, dtype="float64") for _ in range(2))
    losses = together.forward_backward(terms)
    for term, loss_B in zip(terms, losses, strict=True):
        torch.testing.assert_close(apart.forward_backward([term])[0], loss_B)
    torch.testing.assert_close(gradients(apart, Copy.MODEL), gradients(together, Copy.MODEL))


def test_a_fully_masked_row_has_loss_zero_and_no_influence():
    backend = LocalBackend(SOURCE, optimizer=OPTIMIZER)
    batch = batch_of(2, 8)
    weight_B = torch.tensor([7.0, 0.0])
    (loss_B,) = backend.forward_backward([Term(copy=Copy.MODEL, batch=batch, token_weight_B=weight_B)])
    assert loss_B[0] == 0
    assert loss_B[1] > 0
    assert all(not g.any() for g in gradients(backend, Copy.MODEL).values())


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_an_update_is_torch_adamw_with_clipping_and_decay(max_grad_norm):
    settings = AdamWSettings(weight_decay=0.1, max_grad_norm=max_grad_norm)
    backend = LocalBackend(SOURCE, optimizer=settings, dtype="float64")
    witness = LocalBackend(SOURCE, optimizer=settings, dtype="float64")._models[Copy.MODEL]
    optimizer = torch.optim.AdamW(witness.parameters(), lr=1e-2, betas=settings.betas, weight_decay=0.1)
    batch = batch_of(4, 9)
    for _ in range(3):
        backend.forward_backward([Term(copy=Copy.MODEL, batch=batch, token_weight_B=torch.ones(4))])
        report = backend.update(Copy.MODEL, learning_rate=1e-2)
        logits = witness(input_ids=batch.tokens_BS[:, :-1]).logits
        loss_BS = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens_BS[:, 1:], reduction="none")
        optimizer.zero_grad()
        (loss_BS * batch.mask_BS).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(witness.parameters(), max_grad_norm or float("inf"))
        optimizer.step()
        assert report.grad_norm == pytest.approx(float(norm), rel=1e-9)
        assert report.clipped == bool(max_grad_norm)
    expected = {name: p.detach() for name, p in witness.named_parameters()}
    torch.testing.assert_close(dict(backend.parameters(Copy.MODEL)), expected, rtol=1e-9, atol=1e-11)


def test_only_the_block_trains_and_only_it_has_gradients_and_moments():
    backend = LocalBackend(SOURCE, optimizer=OPTIMIZER)
    before = dict(backend.parameters(Copy.MODEL))
    backend.forward_backward([Term(copy=Copy.MODEL, batch=batch_of(3, 9), token_weight_B=torch.ones(3))])
    backend.set_block(Block(layers=frozenset({2}), edges=False))
    backend.forward_backward([Term(copy=Copy.MODEL, batch=batch_of(3, 9), token_weight_B=torch.ones(3))])
    in_block = {name for name in before if ".layers.2." in name}
    assert set(gradients(backend, Copy.MODEL)) == in_block
    backend.update(Copy.MODEL, learning_rate=1e-3)
    assert {name for name, _, _ in backend._optimizers[Copy.MODEL].states()} == in_block
    moved = {n for n, tensor in backend.parameters(Copy.MODEL) if not torch.equal(tensor, before[n])}
    assert moved == in_block
    assert not gradients(backend, Copy.MODEL)
    changes = [tensor - before[name] for name, tensor in backend.parameters(Copy.MODEL)]
    norm = torch.cat([change.flatten() for change in changes]).double().norm()
    assert backend.distance() == pytest.approx(float(norm), rel=1e-6)


def test_divergence_is_an_error():
    backend = LocalBackend(SOURCE, optimizer=OPTIMIZER)
    weight_B = torch.tensor([0.0, float("inf")])
    backend.forward_backward([Term(copy=Copy.MODEL, batch=batch_of(2, 8), token_weight_B=weight_B)])
    with pytest.raises(DivergedError, match="gradient norm of model"):
        backend.update(Copy.MODEL, learning_rate=1e-3)
    backend = LocalBackend(SOURCE, optimizer=OPTIMIZER)
    for _ in range(2):
        backend.update(Copy.AUX, learning_rate=1e30)  # only the weight decay acts, by 1 − 1e29
    with pytest.raises(DivergedError, match="loss of row 1"):
        backend.losses(Copy.AUX, batch_of(2, 8))


def test_a_pretrained_folder_gives_its_own_losses(tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS["qwen3"]))
    model.save_pretrained(tmp_path)
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["qwen3"], folder=tmp_path), optimizer=OPTIMIZER)
    batch = batch_of(1, 9)
    expected = float(model(input_ids=batch.tokens_BS, labels=batch.tokens_BS).loss.detach()) * 9
    assert float(backend.losses(Copy.MODEL, batch)) == pytest.approx(expected, rel=1e-5)
    saved = dict(model.named_parameters())
    assert all(torch.equal(tensor, saved[name]) for name, tensor in backend.parameters(Copy.AUX))


def test_what_cannot_be_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no model_type"):
        LocalBackend(ModelSource(hf_config={}), optimizer=OPTIMIZER)
    with pytest.raises(ModelError, match="nonsense"):
        LocalBackend(ModelSource(hf_config={"model_type": "nonsense"}), optimizer=OPTIMIZER)
    with pytest.raises(ModelError, match="causal language model"):
        LocalBackend(ModelSource(hf_config={"model_type": "vit"}), optimizer=OPTIMIZER)
    with pytest.raises(ModelError, match="cannot load"):
        LocalBackend(ModelSource(hf_config=CONFIGS["llama"], folder=tmp_path), optimizer=OPTIMIZER)
    with pytest.raises(ModelError, match=r"float16.*float32, float64, bfloat16"):
        LocalBackend(SOURCE, optimizer=OPTIMIZER, dtype="float16")


def test_batches_the_model_cannot_take_are_refused():
    backend = LocalBackend(SOURCE, optimizer=OPTIMIZER)
    batch = batch_of(2, 8)
    batch.tokens_BS[1, 3] = 131
    with pytest.raises(ModelError, match=r"token id 131 .* 0\.\.130; .*tokenizer"):
        backend.losses(Copy.MODEL, batch)
    with pytest.raises(ModelError, match="129 tokens are longer than the model's 128"):
        backend.losses(Copy.MODEL, batch_of(1, 129))
