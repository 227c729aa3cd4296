"""The engine of the exercises on a small one: every kind of answer gets the right kind of message."""

from collections import namedtuple
from fractions import Fraction

import numpy as np
import pytest
import torch

from gnclib.course import Exercise, engine, examine, exercise
from gnclib.course.engine import RIGHT
from gnclib.course.lesson import F64, Heading, hints, shaped, slip


def drawn(g):
    return g.rand(4, 3) + 0.5, g.number(0, 1) + 0.2


SCALE = Exercise(
    Heading("0.1", "rows scaled to sum t", points=3, minutes=5),
    solution=lambda x, t: t * x / x.sum(1, keepdim=True),
    draw=drawn,
    mistakes=hints(
        "columns, not rows",
        lambda x, t: t * x / x.sum(0),
        "the sum of all numbers",
        lambda x, t: t * x / x.sum(),
        lambda x, t: x / x.sum(),
    ),
    laws=hints("rows must sum to t", lambda r, x, t: torch.allclose(r.sum(1), torch.full((4,), t, **F64))),
    variants=hints("with the largest number at t", lambda x, t: t * x / x.amax(1, keepdim=True)),
    factors=lambda x, t: {"t": t, "sigma": t**0.5},
)


def right(x, t):
    return t * x / x.sum(1, keepdim=True)


def in_place(x, t):
    x /= x.sum(1, keepdim=True)
    return t * x


def switches_grad_on(x, t):
    x.requires_grad_()
    return right(x, t)


def crashes_in_a_library(x, t):
    wrong = x.reshape(7)  # not that many numbers
    return wrong


def half(x, t):
    return (t * x / x.sum(1, keepdim=True)).half()


def keeps_the_graph(x, t):
    return right(x.clone().requires_grad_(), t)


def fails_on_a_later_input(fail, wrong):
    """Wrong at first, then it fails (on inputs with t > 0.5, of which the first is not one)."""
    return lambda x, t: fail(x) if t > 0.5 else wrong(x, t)


def divides_by_zero(x):
    return x / 0


def stops(x):
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, t: None, "returns nothing"),
        (lambda x, t: right(x, t).tolist(), "is a list, a torch.Tensor is wanted"),
        (lambda x, t: right(x, t).sum(1), r"shape \(4,\), \(4, 3\) is wanted"),
        (lambda x, t: (100 * right(x, t)).long(), "a floating-point one is wanted"),
        (lambda x, t: right(x, t) / 0, "nan or inf"),
        (in_place, "changes its argument number 1 in place"),
        (switches_grad_on, "requires_grad of its argument number 1"),
        (lambda x: x, r"cannot be called with its 2 argument\(s\)"),
        (crashes_in_a_library, r"RuntimeError in the line `wrong = x.reshape\(7\)  # not that many"),
        (lambda x, t: t * x / x.sum(0), "columns, not rows"),
        (lambda x, t: right(x, t) * t, "is t times too large on every input"),
        (lambda x, t: right(x, t) / t**0.5, "is sigma times too small"),
        (lambda x, t: -right(x, t), "the sign is wrong"),
        (lambda x, t: 2 * right(x, t), "is 2 times the right one"),
        (lambda x, t: t * x / x.norm(dim=1, keepdim=True), "rows must sum to t"),
        (lambda x, t: right(x, t) + torch.tensor([0.1, -0.1, 0.0]), r"entry \[\d, [01]\] of the result"),
        (half, "in single precision only"),
        (lambda x, t: right(x.float(), t), "in single precision only"),
        (lambda x, t: x / x.sum(), "sum of all numbers"),
        (keeps_the_graph, "carries the graph of automatic differentiation"),
        (fails_on_a_later_input(divides_by_zero, lambda x, t: t * x / x.sum(0)), "columns, not rows"),
        (fails_on_a_later_input(stops, lambda x, t: t * x / x.sum(0)), "columns, not rows"),
        (fails_on_a_later_input(stops, right), "stopped with ZeroDivisionError"),
        (fails_on_a_later_input(divides_by_zero, right), r"nan or inf on input \d \(t = 0.[5-9]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(function, message):
    verdict = examine(SCALE, function)
    assert verdict.status == "not yet"
    assert verdict.points == 0
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(verdict.message)


@pytest.mark.parametrize(
    "function",
    [
        right,
        lambda x, t: torch.stack([t * row / row.sum() for row in x]),
        lambda x, t: right(x.clone().requires_grad_(), t).detach(),
    ],
)
def test_right_answers_are_right_however_they_are_made(function):
    verdict = examine(SCALE, function)
    assert (verdict.status, verdict.points, verdict.message) == (RIGHT, 3, "")
    assert str(verdict) == "0.1 rows scaled to sum t - right (3 of 3 points)"


def test_variants_are_right_with_a_remark():
    verdict = examine(SCALE, lambda x, t: t * x / x.max(1, keepdim=True).values)
    assert (verdict.status, verdict.points) == (RIGHT, 3)
    assert str(verdict).endswith("- right (3 of 3 points): with the largest number at t")


def test_automatic_differentiation_where_it_is_forbidden_or_its_graph_allowed():
    def draw(g):
        return (g.rand(5),)

    def by_autograd(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad((x**2).sum(), x)[0]

    by_hand = Exercise(
        Heading("0.3", "slope of x^2", 1, 1), solution=lambda x: 2 * x, draw=draw, by_hand=True
    )
    assert examine(by_hand, lambda x: x + x).status == RIGHT
    assert "by automatic differentiation" in examine(by_hand, by_autograd).message
    assert "by automatic differentiation" in examine(by_hand, torch.func.grad(lambda x: (x**2).sum())).message
    assert "the sign is wrong" in examine(by_hand, lambda x: -by_autograd(x)).message
    loss = Exercise(Heading("0.4", "a loss", 1, 1), solution=lambda x: x.sum(), draw=draw, keeps_graph=True)
    assert examine(loss, lambda x: x.clone().requires_grad_().sum()).status == RIGHT


def test_slips_replace_arguments_and_set_switches():
    def formula(x, t, power=2):
        return x + t**power

    assert slip(formula, t=3)(1, 2) == 10
    assert slip(formula, t=lambda t: -t, power=3)(1, 2) == -7
    assert slip(formula, power=1, x=lambda x: 10 * x)(1, 2) == 12


def test_choices_come_in_turn_and_functions_want_the_shape_of_their_docstring():
    rounds = Exercise(Heading("0.5", "", 1, 1), solution=len, draw=lambda g: (g.in_turn("a", "b", "c"),))
    assert [rounds.arguments(k)[0] for k in range(5)] == ["a", "b", "c", "a", "b"]
    assert shaped("f(t)", 2.0, ()).dtype == torch.float64
    assert shaped("f(t)", torch.ones(3), (), (3,)).shape == (3,)
    with pytest.raises(
        TypeError, match=r"f\(t\) wants one number or the shape \(3,\).*got the shape \(3, 1\)"
    ):
        shaped("f(t)", torch.ones(3, 1), (), (3,))


def test_not_solved_yet_is_no_error():
    def stub(x, t):
        raise NotImplementedError

    assert str(examine(SCALE, stub)) == "0.1 rows scaled to sum t - to do"


def test_a_dtype_that_torch_does_not_implement_is_an_error():
    def abs_of_truths(x, mean, std, levels):
        inside = ((x - mean) <= std).abs()
        return inside.double().mean() * torch.ones_like(levels)

    verdict = examine(exercise("6.3"), abs_of_truths)
    assert verdict.status == "not yet"
    assert "stopped with NotImplementedError in the line `inside =" in verdict.message


def test_a_wrong_constant_is_not_taken_for_single_precision():
    def energy(w, mu, v, y, t, pi=3.14):
        s = v + t
        logs = w.log() - (y[:, None] - mu) ** 2 / (2 * s) - 0.5 * torch.log(2 * pi * s)
        return -torch.logsumexp(logs, 1)

    assert examine(exercise("1.1"), lambda *a: energy(*a, pi=torch.pi)).status == RIGHT
    verdict = examine(exercise("1.1"), energy)
    assert verdict.status == "not yet"
    assert "float64" not in verdict.message


def test_an_answer_that_is_right_on_some_inputs_only_is_not_right():
    def sometimes(x, t):
        return right(x, t) if t > 0.5 else x

    verdict = examine(SCALE, sometimes)
    assert verdict.status == "not yet"


def test_the_inputs_are_reproducible_and_nobody_sees_what_another_changed():
    first, again = SCALE.arguments(2), SCALE.arguments(2)
    assert torch.equal(first[0], again[0])
    assert first[0] is not again[0]
    assert not torch.equal(first[0], SCALE.arguments(3)[0])


def test_numbers_and_tuples():
    pair = Exercise(
        Heading("0.2", "sum and mean", 1, 1),
        lambda x: (x.sum(), x.mean()),
        lambda g: (g.rand(5),),
    )
    assert examine(pair, lambda x: (float(x.sum()), x.mean())).status == RIGHT
    assert (
        examine(pair, lambda x: (np.array(x.sum(), np.longdouble), Fraction(float(x.mean())))).status == RIGHT
    )
    assert "2 results are wanted, as a tuple" in examine(pair, lambda x: x.sum()).message
    assert "not 3" in examine(pair, lambda x: (x.sum(), x.mean(), 0)).message
    assert "the second result is a str" in examine(pair, lambda x: (x.sum(), "mean")).message
    assert "the second result is a str" in examine(pair, lambda x: (x.sum(), str(x.mean().item()))).message
    assert "the first result is a Tensor" in examine(pair, lambda x: (x.sum() + 1j, x.mean())).message
    assert "the first result has the shape (1,)" in examine(pair, lambda x: (x.sum()[None], x.mean())).message
    Pair = namedtuple("Pair", "sum mean")
    assert "the result differs" in examine(pair, lambda x: Pair(x.sum(), -x.mean())).message
    assert "the first result is nan" in examine(pair, lambda x: (float("nan"), x.mean())).message


def test_check_wants_the_function_and_a_known_number(capsys, monkeypatch):
    with pytest.raises(KeyError, match=r"no exercise '9.9'; there are 1.1"):
        engine.check("9.9", right)
    with pytest.raises(TypeError, match="without parentheses"):
        engine.check("1.1", 3.0)
    monkeypatch.setattr(engine, "EXERCISES", {"0.1": SCALE})
    monkeypatch.setattr(engine, "_latest", {})
    assert not engine.solved("0.1")
    assert engine.check("0.1", right) == 3
    assert engine.solved("0.1")
    engine.progress(0)
    assert "3 of 3 points" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no lesson 7"):
        engine.progress(7)
