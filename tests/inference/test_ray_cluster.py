"""What workers of a Ray cluster get, and addresses that are refused; nothing here starts Ray."""

from __future__ import annotations

import importlib.util

import pytest

from segkit import cli
from segkit.inference.ray_cluster import Share, check_address, share_out


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "expected"),
    [
        # a head without CPUs for work, and two machines: one worker each
        ([{"CPU": 0}, {"CPU": 16}, {"CPU": 12}], None, "auto", Share(2, "cpu", 12, 0)),
        ([{"CPU": 16}, {"CPU": 12}], 6, "cpu", Share(6, "cpu", 4, 0)),  # 4 + 3; of 5 CPUs only 3 + 2 would fit
        ([{"CPU": 2}], 2, "auto", Share(2, "cpu", 1, 0)),
        ([{"CPU": 2}], 7, "auto", Share(7, "cpu", 1, 0)),  # for machines that are still to come
        ([{"CPU": 32, "GPU": 4}, {"CPU": 8, "GPU": 1}], None, "auto", Share(5, "cuda", 1, 1)),
        ([{"CPU": 32, "GPU": 4}], 2, "cuda", Share(2, "cuda", 1, 1)),
        ([{"CPU": 32, "GPU": 4}], 6, "auto", Share(6, "cuda", 1, 1 / 2)),
        ([{"CPU": 32, "GPU": 4}], None, "cpu", Share(1, "cpu", 32, 0)),
    ],
)
def test_workers_share_a_cluster(nodes, workers, device, expected):
    assert share_out(nodes, workers, device) == expected


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "words"),
    [
        ([{"CPU": 2}], None, "cuda", "has no GPU. Say `--device cpu`"),
        ([{"CPU": 2, "GPU": 2}], None, "cuda:1", "expected auto, cpu or cuda"),
        ([{"CPU": 2}], 0, "auto", "expected 1 or more"),
    ],
)
def test_what_no_cluster_can_give_is_refused(nodes, workers, device, words):
    with pytest.raises(ValueError, match=words):
        share_out(nodes, workers, device)


def test_a_missing_extra_and_a_client_address_are_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", str(tmp_path / "m"), str(tmp_path), "--out", str(tmp_path / "out"), "--ray", "local"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "segkit: jobs on a Ray cluster need the package ray: `pip install 'segkit[ray]'`."
    ]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match=r"expected auto, local or HOST:PORT.*`ray job submit"):
        check_address("ray://head:10001")


def test_options_of_ray_need_ray(monkeypatch, capsys, tmp_path):
    given = ["predict", str(tmp_path / "m"), str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*given, "--workers", "2"])
    assert stopped.value.code == 2
    assert "say --ray as well" in capsys.readouterr().err
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        cli.main([*given, "--ray", "auto"])
    assert stopped.value.code == 2
    assert "start one for --ray" in capsys.readouterr().err
