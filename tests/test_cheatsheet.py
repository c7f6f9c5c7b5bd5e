"""The cheat sheet: what its cards say of each method, against torch's own layers."""

import re

import pytest
import torch
from torch import nn

pytest.importorskip("sphinx")

import cheatsheet
from words import FOLDER, WordsError

from normbook.methods import METHODS

LAYERS = {
    "BN": nn.BatchNorm2d(6),
    "LN": nn.LayerNorm(6),
    "IN": nn.InstanceNorm2d(6, affine=True),
    "GN": nn.GroupNorm(2, 6),
    "RMSNorm": nn.RMSNorm(6),
}


def test_means_are_those_of_the_papers() -> None:
    said = {key: [tuple(row) for row in cheatsheet.means(key)] for key in METHODS}
    assert said == {
        "BN": [("(N, C, H, W)", "N, H, W", "C"), ("(N, C, T)", "N, T", "C")],
        "LN": [("(N, C, H, W)", "C, H, W", "N"), ("(N, T, C)", "C", "N · T")],
        "IN": [("(N, C, H, W)", "H, W", "N · C"), ("(N, C, T)", "T", "N · C")],
        "GN": [
            ("(N, C, H, W)", "C/G, H, W", "N · G"),
            ("(N, C, T)", "C/G, T", "N · G"),
        ],
        "RMSNorm": [("(N, T, C)", "C", "N · T")],
    }


@pytest.mark.parametrize("key", METHODS)
def test_what_is_stored_is_the_layer_s_state_dict(key: str) -> None:
    said = cheatsheet.stored(METHODS[key].build_native(6, 2))
    state = LAYERS[key].state_dict()
    assert said.keys() == state.keys()
    for name, value in state.items():
        assert said[name] == ("(C)" if value.shape == (6,) else "a number")
    card = cheatsheet.facts(key)
    assert all(f"<code>{name}</code> {shape}" in card for name, shape in said.items())


@pytest.mark.parametrize("key", METHODS)
def test_only_batch_norm_has_two_modes(key: str) -> None:
    assert cheatsheet.modes_differ(key) == METHODS[key].tracks == (key == "BN")
    assert ("evaluation differs" in cheatsheet.facts(key)) == (key == "BN")


def test_modes_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def remembering(channels: int, **settings: object) -> nn.Module:
        return nn.InstanceNorm2d(channels, track_running_stats=True)

    method = METHODS["IN"]._replace(native=remembering)
    monkeypatch.setitem(METHODS, "IN", method)
    assert cheatsheet.modes_differ("IN")


@pytest.mark.parametrize("key", METHODS)
def test_defaults_are_torchs(key: str) -> None:
    """A layer built from what the sheet says is the one built without it."""
    name, arguments = cheatsheet.call(LAYERS[key])
    layer = getattr(nn, name.removeprefix("nn."))
    said = dict(pair.split("=") for pair in arguments if "=" in pair)
    needed = [a for a in arguments if "=" not in a]
    sizes = {"num_groups": 2}
    first = [sizes.get(argument, 6) for argument in needed]
    full = layer(*first, **{name: eval(value) for name, value in said.items()})
    assert repr(full) == repr(layer(*first))
    assert full.state_dict().keys() == layer(*first).state_dict().keys()
    assert "device" not in said


def test_instance_norm_learns_nothing_by_default() -> None:
    assert "by default none" in cheatsheet.facts("IN")
    assert sum("by default none" in cheatsheet.facts(key) for key in METHODS) == 1
    assert "γ (C), no β" in cheatsheet.facts("RMSNorm")


def test_each_method_has_three_traps() -> None:
    traps = cheatsheet.read_traps()
    assert {key: len(says) for key, says in traps.items()} == dict.fromkeys(METHODS, 3)


def test_a_trap_of_no_method_is_named(tmp_path, monkeypatch) -> None:
    for name in ("traps.toml", "traps.schema.json"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        text = re.sub('method = "LN"', 'method = "LM"', text)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(cheatsheet, "FOLDER", tmp_path)
    with pytest.raises(WordsError, match="'last axis', field 'method': no method 'LM'"):
        cheatsheet.read_traps()


@pytest.mark.parametrize("key", METHODS)
def test_inputs_fit_the_layers(key: str) -> None:
    x = cheatsheet.input_of(key)
    assert torch.isfinite(LAYERS[key](x)).all()
