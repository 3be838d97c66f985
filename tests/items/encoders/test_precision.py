import pytest
import torch

from hllm import artifacts
from hllm.errors import ConfigError
from hllm.items.encoders import precision

CPU = torch.device("cpu")


def test_the_measurement_is_positive():
    assert precision.measure_bf16() > 0


def test_a_hopeless_bf16_is_given_up_after_something_tiny(monkeypatch):
    sizes = []

    def timed(x, w):
        sizes.append(len(x))
        return 1.0 if x.dtype == torch.float32 else 50.0

    monkeypatch.setattr(precision, "_best_time", timed)
    assert precision.measure_bf16() == pytest.approx(1 / 50)
    assert set(sizes) == {64}


@pytest.mark.parametrize("speedup, expected", [(3.0, "bf16"), (1.0, "fp32"), (0.02, "fp32")])
def test_the_choice_is_measured_once_and_recorded(tmp_path, monkeypatch, speedup, expected):
    calls = []
    monkeypatch.setattr(precision, "measure_bf16", lambda: calls.append(1) or speedup)
    assert precision.auto_precision(CPU, tmp_path) == expected
    assert precision.auto_precision(CPU, tmp_path) == expected
    assert len(calls) == 1
    (record,) = artifacts.read_json(tmp_path / precision.FILE).values()
    assert record == {"precision": expected, "bf16_speedup": speedup}


def test_another_processor_is_measured_for_itself(tmp_path, monkeypatch):
    artifacts.write_json(tmp_path / precision.FILE, {"another": {"precision": "bf16"}})
    monkeypatch.setattr(precision, "measure_bf16", lambda: 1.0)
    assert precision.auto_precision(CPU, tmp_path) == "fp32"
    assert artifacts.read_json(tmp_path / precision.FILE)["another"] == {"precision": "bf16"}


@pytest.mark.parametrize("content", ["[]", "{", '{"cpu": 1}', '{"cpu": {"precision": "fp7"}}'])
def test_a_damaged_record_is_made_anew(tmp_path, monkeypatch, content):
    (tmp_path / precision.FILE).write_text(content)
    monkeypatch.setattr(precision, "measure_bf16", lambda: 1.0)
    assert precision.auto_precision(CPU, tmp_path) == "fp32"
    (record,) = artifacts.read_json(tmp_path / precision.FILE).values()
    assert record["precision"] == "fp32"


def test_a_gpu_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("hllm.hardware.bf16_is_fast", lambda device: True)
    assert precision.auto_precision(torch.device("cuda"), tmp_path) == "bf16"
    monkeypatch.setattr("hllm.hardware.bf16_is_fast", lambda device: False)
    assert precision.auto_precision(torch.device("cuda"), tmp_path) == "fp32"
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match=r"'fp23' \(did you mean 'fp32'\?\)"):
        precision.check_precision("fp23")
