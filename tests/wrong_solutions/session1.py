"""Session 1."""

import torch

from gnclib.gmm import GaussianMixture


def energy(w, mu, v, y, t):
    return GaussianMixture(w, mu, v).energy(y, t)


WRONG = {
    "1.1": [
        (lambda w, mu, v, y, t: -energy(w, mu, v, y, t), "sign is wrong"),
        (lambda w, mu, v, y, t: energy(w, mu, v, y, 0.0), "noise is missing"),
        (lambda w, mu, v, y, t: energy(w, mu, v + t**0.5, y, 0.0), "standard deviations do not"),
        (
            lambda w, mu, v, y, t: -torch.distributions.Normal(mu, (v + t).sqrt()).log_prob(y[:, None]),
            "shape",
        ),
    ],
}
