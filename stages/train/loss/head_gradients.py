"""Gradients of log-probs with respect to the language-model head's weight, in closed form. Pure torch.

With z = sum_t log softmax(l_t)[y_t], l_t the logits of state x_t (lm_head.Head), softcap only where the model has one:

    dz/dW = A^T X, (V, H);  A: (n, V), a_t = scale (onehot(y_t) - softmax(l_t)) (1 - (l_t / softcap)^2);  X: (n, H)

Of a tied head this is the gradient through the head alone. Never are there logits of more than CHUNK tokens, or more
than COLUMNS of the vocabulary for the tokens of one pair. Under autocast the products are rounded as in training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.stages.train.model.lm_head import CHUNK, Head, chunks

COLUMNS = 8192


def add_gradient(total: Tensor, x: Tensor, tokens: Tensor, head: Head) -> None:
    """Add dz/dW = A^T X of n tokens to `total`, (V, H) fp32. x: (n, H), the states that predict `tokens`, (n,)."""
    for rows, _, a in chunks(x, tokens, head):
        for start in range(0, len(total), COLUMNS):
            total[start : start + COLUMNS] += a[:, start : start + COLUMNS].T @ x[rows]


def products(x_w: Tensor, tokens_w: Tensor, x_l: Tensor, tokens_l: Tensor, head: Head) -> Tensor:
    """Inner products (s_w.s_w, s_l.s_l, s_w.s_l), (3,) float64, of s = dz/dW of one pair's two responses.

    By the Gram identity <A_w^T X_w, A_l^T X_l> = sum_{t,t'} (a_t.a_t') (x_t.x_t') where the pair has fewer tokens than
    H, else from the gradients themselves, COLUMNS rows of them at a time.
    """
    x, tokens, n_w = torch.cat([x_w, x_l]), torch.cat([tokens_w, tokens_l]), len(x_w)
    log_sum = torch.cat([head.logits(states).logsumexp(1) for states in x.split(CHUNK)])
    gram = torch.zeros((len(x), len(x)), device=x.device) if len(x) < x.shape[1] else None
    inner = torch.zeros(3, dtype=torch.float64, device=x.device)
    for start in range(0, len(head.weight), COLUMNS):
        logits = head.logits(x, start, start + COLUMNS)
        a = -(logits - log_sum[:, None]).exp()  # the columns of A from `start` on
        inside = ((tokens >= start) & (tokens < start + logits.shape[1])).nonzero().squeeze(1)
        a[inside, tokens[inside] - start] += 1
        a = a if head.softcap is None else a * (1 - (logits / head.softcap).square())
        a = a if head.scale == 1 else a * head.scale
        if gram is not None:
            gram += a @ a.T
        else:
            s_w, s_l = (a[:n_w].T @ x[:n_w]).double(), (a[n_w:].T @ x[n_w:]).double()
            inner += torch.stack([s_w.square().sum(), s_l.square().sum(), (s_w * s_l).sum()])
    if gram is not None:
        both = gram.double() * (x.float() @ x.float().T).double()
        inner = torch.stack([both[:n_w, :n_w].sum(), both[n_w:, n_w:].sum(), both[:n_w, n_w:].sum()])
    return inner
