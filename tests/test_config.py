from __future__ import annotations

import pytest
import yaml

from segkit.config import read_config
from segkit.shipped import shipped_configs
from segkit.yaml_text import parse_yaml

SMALLEST = "masks: {format: binary, classes: [nucleus]}\n"


def read(tmp_path, text: str, *overrides: str):
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    return read_config(tmp_path / "c.yaml", overrides)


def test_yaml_is_read_by_the_core_rules():
    values, _ = parse_yaml(
        "{a: off, b: no, c: on, d: 1e-3, e: 010, f: true, g: ~, h: 0x1F, i: .5, j: 1_000, k: 12:30}", "t"
    )
    assert values == {
        "a": "off", "b": "no", "c": "on", "d": 0.001, "e": 10, "f": True, "g": None, "h": 31, "i": 0.5, "j": "1_000",
        "k": "12:30",
    }  # fmt: skip


def test_class_names_that_yaml_1_1_would_turn_into_booleans(tmp_path):
    assert read(tmp_path, "masks: {format: multiclass, classes: [on, off, no]}").masks.classes == ["on", "off", "no"]


def test_overrides_reach_into_sections_and_name_themselves_when_wrong(tmp_path):
    config = read(tmp_path, SMALLEST, "train.epochs=5", "data.crop=[64, 32]", "masks.codec.values={255: nucleus}")
    assert config.train.epochs == 5
    assert config.data.crop == [64, 32]
    assert config.masks.codec == {"values": {255: "nucleus"}}
    config = read(tmp_path, SMALLEST, "train.optimizer=sgd", "train.optimizer.momentum=0.8")
    assert config.train.optimizer == {"name": "sgd", "momentum": 0.8}
    assert read(tmp_path, SMALLEST + "augment: street\n", "train.lr=1e-4").train.lr == 1e-4
    with pytest.raises(ValueError, match=r"'train.epochs=many': `train.epochs` is 'many'"):
        read(tmp_path, SMALLEST, "train.epochs=many")
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        read(tmp_path, SMALLEST, "train.epochs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALLEST + "train:\n  epoch: 3\n", r"line 3: unknown key `train.epoch`. Did you mean `epochs`\?"),
        (SMALLEST + "agument: light\n", r"line 2: unknown key `agument`. Did you mean `augment`\?"),
        (SMALLEST + "data:\n  val: {form: train}\n", r"line 3: unknown key `data.val.form`. Did you mean `from`\?"),
        (SMALLEST + "train: {lr: -1}\n", r"line 2: `train.lr` is -1, expected greater than 0"),
        (SMALLEST + "train: {lr: 1}\ntrain: {lr: 2}\n", "line 3: the key `train` is given twice"),
        ("data: {root: x}\n", "the key `masks` is missing"),
        ("masks: {format: binary\n", "line 2: not valid YAML"),
        ("- a\n- b\n", "expected keys such as"),
        ("", "expected keys such as"),
        (SMALLEST + "data: {crop: 0}\n", "`data.crop` is 0, expected greater than 0"),
        (SMALLEST + "data: {crop: [1, 2, 3]}\n", "`data.crop` is"),
        (SMALLEST + "loss: 5\n", "`loss` is 5"),
        (SMALLEST + "train: {compile: fast}\n", "`train.compile` is 'fast'"),
        (SMALLEST + "train: {devices: 0}\n", "`train.devices` is 0"),
        (SMALLEST + "data: {train: {from: train}}\n", "expected folders for `train`"),
        (SMALLEST + "data: {val: {from: val}}\n", "`data.val.from` is 'val', expected 'train'"),
        (SMALLEST + "data: {val: {from: train, list: a.txt}}\n", "either `from: train` or folders"),
        (SMALLEST + "data: {val: {images: a, fraction: 0.3}}\n", "where `fraction` is given"),
        (SMALLEST + "data: {cache: disc}\n", "`data.cache` is 'disc', expected 'off', 'ram', 'disk' or 'device'"),
        (SMALLEST + "data: {cache_gib: 0}\n", "`data.cache_gib` is 0, expected greater than 0"),
        (SMALLEST + "data: {cach: ram}\n", r"unknown key `data.cach`. Did you mean `cache`\?"),
        (
            SMALLEST + "data: {normalize: image}\nmodel: {clip: none}\n",
            "c.yaml: expected `model.clip` and `model.window` left out",
        ),
        ("masks: {? [a] : b}\n", "line 1: a key is a list or a map"),
        ("masks: {format: panoptic, classes: [a]}", "expected 'binary', 'multilabel' or 'multiclass'"),
    ],
)
def test_a_mistake_names_file_line_key_and_the_way_out(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text)
    assert "c.yaml" in str(caught.value)


def test_the_words_of_the_cache(tmp_path):
    # `off` is a word, not false.
    for word in ("off", "ram", "disk", "device"):
        assert read(tmp_path, SMALLEST + f"data: {{cache: {word}}}\n").data.cache == word
    assert read(tmp_path, SMALLEST).data.cache == "off"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.yaml: cannot be read"):
        read_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_are_whole_and_survive_a_round_trip(tmp_path, name):
    path = shipped_configs()[name]
    assert 15 <= len(path.read_text().splitlines()) <= 60
    config = read_config(path)
    (tmp_path / "again.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(tmp_path / "again.yaml") == config


def test_nothing_is_lost_in_the_resolved_config(tmp_path):
    text = (
        SMALLEST + "data: {root: '12e3', val: {from: train, group: '(on)'}}\nmodel: {weights: null, encoder: 'off'}\n"
    )
    config = read(tmp_path, text, "train.clip_norm=null")
    assert (config.data.root, config.model.weights, config.train.clip_norm) == ("12e3", None, None)
    (tmp_path / "again.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(tmp_path / "again.yaml") == config


def test_shipped_configs_have_all_sections():
    for path in shipped_configs().values():
        assert set(yaml.safe_load(path.read_text())) == {"masks", "data", "augment", "model", "loss", "train"}


def test_compile_is_a_switch_or_a_mode(tmp_path):
    for text, value in (("true", True), ("off", False), ("reduce-overhead", "reduce-overhead"), ("default", "default")):
        assert read(tmp_path, SMALLEST, f"train.compile={text}").train.compile == value
    assert read(tmp_path, SMALLEST).train.compile is False


def test_masks_are_those_of_the_layout_unless_the_file_names_classes(tmp_path):
    data = f"data: {{root: {tmp_path}, layout: cityscapes, train: {{}}, val: {{}}}}\n"
    config = read(tmp_path, data)
    assert (config.masks.format, len(config.masks.classes)) == ("multiclass", 19)
    assert config.masks.codec["values"][7] == "road"
    assert config.data.val.images is None
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(config.to_yaml())
    assert read_config(resolved) == config
    one_vs_rest = read(tmp_path, data + "masks: {activation: sigmoid}\n")
    assert (one_vs_rest.masks.activation, one_vs_rest.masks.classes) == ("sigmoid", config.masks.classes)
    own = read(tmp_path, data + "masks: {format: binary, classes: [road]}\n")
    assert (own.masks.codec, own.masks.ignored_values) == ("index_png", [])
    with pytest.raises(ValueError, match=r"c\.yaml: the key `masks` is missing"):
        read(tmp_path, "data: {layout: folders, train: {}}\n")


def test_a_layout_that_is_not_known_or_lacks_its_files_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"line 3: data\.layout is 'cityscape', .*Did you mean `cityscapes`"):
        read(tmp_path, "data:\n  train: {}\n  layout: cityscape\n")
    with pytest.raises(ValueError, match=r"line 1: .*no_such: is not described by a file dataset\.json"):
        read(tmp_path, f"data: {{layout: msd, root: {tmp_path / 'no_such'}, train: {{}}}}\n")


def test_patterns_and_bands_of_a_part(tmp_path):
    masks = "masks: {format: binary, classes: [road]}\n"
    part = "images: i, masks: m, image_pattern: '{stem}_{band}', bands: ['0000', red]"
    config = read(tmp_path, f"{masks}data: {{train: {{{part}}}}}\n")
    assert (config.data.train.image_pattern, list(config.data.train.bands)) == ("{stem}_{band}", ["0000", "red"])
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert read_config(again).data.train == config.data.train
    for wrong in ("[0000, red]", "red", "[]"):
        with pytest.raises(ValueError, match=r"line 2: `data\.train\.bands"):
            read(tmp_path, f"{masks}data: {{train: {{images: i, masks: m, bands: {wrong}}}}}\n")
    with pytest.raises(ValueError, match="either `from: train` or folders, not both"):
        read(tmp_path, f"{masks}data: {{train: {{}}, val: {{from: train, mask_pattern: '{{stem}}_m'}}}}\n")
