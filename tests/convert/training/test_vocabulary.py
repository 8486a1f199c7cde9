"""The chunked loss against autograd on whole logits."""

import pytest
import torch
from torch.nn import functional

import lineahead.convert.training.vocabulary as vocabulary
from lineahead.convert.training.vocabulary import Weights, distillation_backward, head_of
from lineahead.errors import ArchitectureError


@pytest.mark.parametrize(
    "weights",
    [
        Weights(kl=1.0, ce=0.0, temperature=1.0),
        Weights(kl=0.0, ce=1.0, temperature=1.0),
        Weights(kl=0.7, ce=0.3, temperature=1.0),
        Weights(kl=0.7, ce=0.3, temperature=2.5),
    ],
)
@pytest.mark.parametrize("rows", [1, 5, 100])
def test_losses_and_gradients(weights, rows, monkeypatch):
    monkeypatch.setitem(vocabulary.CHUNK_BYTES, "cpu", 4 * 13 * rows)
    torch.manual_seed(0)
    hidden = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    teacher_hidden = torch.randn(2, 6, 8, dtype=torch.float64)
    head = torch.nn.Linear(8, 13).double()
    batch = torch.randint(13, (2, 6))
    against = teacher_hidden[:, :-1].flatten(0, 1) if weights.kl else None
    rows, targets = (hidden * 1.0)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()
    found = distillation_backward(rows, head, against, head, targets, weights, 0.5)
    gradients = [hidden.grad.clone(), head.weight.grad.clone()]
    hidden.grad = head.weight.grad = None

    logits = head(hidden[:, :-1]).flatten(0, 1)
    wanted = (head(teacher_hidden[:, :-1]).flatten(0, 1).detach() / weights.temperature).log_softmax(-1)
    warm = (logits / weights.temperature).log_softmax(-1)
    kl = functional.kl_div(warm, wanted, reduction="batchmean", log_target=True)
    ce = functional.cross_entropy(logits, batch[:, 1:].flatten())
    loss = weights.kl * weights.temperature**2 * kl + weights.ce * ce
    (0.5 * loss).backward()
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["ce"] == pytest.approx(ce.item(), rel=1e-5)
    if weights.kl:
        assert found["kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert torch.allclose(gradients[0], hidden.grad, atol=1e-9)
    assert torch.allclose(gradients[1], head.weight.grad, atol=1e-9)


def test_a_head_that_does_more_is_refused(tiny_llama):
    head_of(tiny_llama)
    tiny_llama.config.final_logit_softcapping = 1.0
    with pytest.raises(ArchitectureError, match="LM head"):
        head_of(tiny_llama)
