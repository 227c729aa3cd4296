"""Types of JSON and of settings: what fits is taken, what does not is named in one line."""

import pickle
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Annotated, NotRequired

import pytest
from pydantic import AllowInfNan, Field, model_validator
from typing_extensions import TypedDict

from gnclib.io import check, decode, dumps, read_json, settings

NAN = float("nan")


class Inner(TypedDict):
    x: int | None


class Record(TypedDict):
    name: str
    t: list[float]
    inner: NotRequired[dict[str, Inner]]


@pytest.mark.parametrize(
    ("value", "model", "message"),
    [
        (True, int, "it must be a valid integer, got True"),
        (1.0, int, "it must be a valid integer, got 1.0"),
        (1, bool, "it must be a valid boolean, got 1"),
        (True, float, "it must be a valid number, got True"),
        ("1", float, "it must be a valid number, got '1'"),
        (NAN, float, "it must be a finite number, got nan"),
        ([1, float("inf")], list[float], r"\[1\] must be a finite number, got inf"),
        ({"a": [1, "2"]}, dict[str, list[int]], r"a\[1\] must be a valid integer, got '2'"),
        ({"name": "x"}, Record, "missing or unknown: t"),
        ({"name": "x", "t": [], "z": 1}, Record, "missing or unknown: z"),
        ({"name": "x", "t": 1}, Record, "^t must be a valid list, got 1"),
        ({"name": "x", "t": [], "inner": {"k": {"x": True}}}, Record, r"inner\.k\.x must be a valid integer"),
        ({"name": "x", "t": [], "inner": {"k": {"x": 1, "y": 1}}}, Record, r"missing or unknown: inner\.k\.y"),
        ({"n" * 5000: 1}, dict[str, str], "^n{40} must be a valid string, got 1$"),
        ([], dict, "it must be a valid dictionary, got a list of 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit(value, model, message):
    with pytest.raises(ValueError, match=message):
        check(value, model)
    with pytest.raises(ValueError, match="the place"):
        check(value, model, "the place")


def test_what_fits():
    value = {"name": "x", "t": [1, 2.5], "inner": {"k": {"x": None}}}
    assert check(value, Record) == value
    assert check([NAN], list[Annotated[float, AllowInfNan(True)]])[0] != 0
    assert check(3, int | float) == 3
    assert check(value, object) is value


def test_files_of_encoded_numbers(tmp_path):
    """nan and infinity, where the type allows them; refused where it does not, or before they are decoded."""
    path = tmp_path / "a.json"
    path.write_text(dumps({"t": [NAN, 1.5]}))
    found = decode(read_json(path, "list"))
    first, second = check(found, dict[str, list[Annotated[float, AllowInfNan(True)]]])["t"]
    assert first != first
    assert second == 1.5
    with pytest.raises(ValueError, match=r"t\[0\] must be a finite number, got nan"):
        check(found, dict[str, list[float]])
    with pytest.raises(
        ValueError, match=r"a\.json is no list: t\[0\] must be a valid number, got an object of 1"
    ):
        read_json(path, "list", dict[str, list[float]])


@settings
class Small:
    count: Annotated[int, Field(ge=1, description="must be a positive integer")] = 1
    rate: Annotated[float, Field(gt=0, lt=1, description="must lie in (0, 1)")] = 0.5
    name: str = ""

    @model_validator(mode="after")
    def _fit(self):
        if self.count > 10 and not self.name:
            raise ValueError("more than 10 need a name")
        return self


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count must be a positive integer, got 0"),
        ({"count": True}, "count must be a positive integer, got True"),
        ({"count": "3"}, "count must be a positive integer, got '3'"),
        ({"rate": 1}, r"rate must lie in \(0, 1\), got 1"),
        ({"rate": NAN}, r"rate must lie in \(0, 1\), got nan"),
        ({"name": 3}, "name must be a valid string, got 3"),
        ({"other": 3}, "missing or unknown: other"),
        ({"count": 11}, "^more than 10 need a name$"),
    ],
)
def test_settings_out_of_range(change, message):
    """When they are made and when they are replaced, in one line."""
    for make in (lambda: Small(**change), lambda: replace(Small(), **change)):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert "\n" not in str(error.value)


def test_settings_are_plain_frozen_dataclasses():
    small = Small(count=3, rate=0.25)
    assert replace(small, count=4) == Small(4, 0.25)
    assert asdict(small) == {"count": 3, "rate": 0.25, "name": ""}
    assert pickle.loads(pickle.dumps(small)) == small
    assert hash(small) == hash(Small(3, 0.25))
    with pytest.raises(FrozenInstanceError):
        small.count = 0
