"""What a person sees of a step that takes its time, where there is no terminal to draw bars in."""

import itertools

import pytest

import flows.talk
from flows.talk import LINE_S, Talk


def test_a_file_gets_a_line_of_progress_a_minute_and_none_of_what_is_over_sooner(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(step=LINE_S / 4)
    monkeypatch.setattr(flows.talk.time, "monotonic", lambda: next(clock))
    talk = Talk()
    with talk.step("train light"):
        for step in range(1, 11):
            talk.bar("train light", step / 10, f"epoch 1/1, {step} s left, EN 0.250")
    with talk.step("gate"):
        talk.bar("gate", 0.5, "")
    *told, light, gate = capsys.readouterr().err.splitlines()
    assert told == [f"  {'train light':<28}{share:>7}  epoch 1/1, {left} s left, EN 0.250" for share, left in (("40%", 4), ("80%", 8))]
    assert light.split()[:2] == ["train", "light"] and gate.split()[0] == "gate"
