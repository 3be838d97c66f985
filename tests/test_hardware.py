from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest
import torch

from hllm import hardware
from hllm.errors import DeviceError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_devices_without_a_gpu(no_gpu: None) -> None:
    assert hardware.pick_device() == hardware.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"device 'cuda' is not available: .*; valid: auto, cpu$"):
        hardware.pick_device("cuda")
    with pytest.raises(
        DeviceError, match=r"unknown device 'cpuu' \(did you mean 'cpu'\?\); valid: auto, cpu"
    ):
        hardware.pick_device("cpuu")


def test_devices_with_gpus(two_gpus: None) -> None:
    assert hardware.pick_device("auto") == torch.device("cuda")
    assert hardware.pick_device(torch.device("cuda:1")) == torch.device("cuda:1")
    with pytest.raises(DeviceError, match=r"unknown device 'cuda:2'.*valid: auto, cpu, cuda, cuda:0, cuda:1"):
        hardware.pick_device("cuda:2")


@pytest.mark.parametrize(("major", "fast"), [(7, False), (8, True), (9, True)])
def test_bf16_on_gpus(monkeypatch: pytest.MonkeyPatch, major: int, fast: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert hardware.bf16_is_fast("cuda:0") is fast


@pytest.mark.parametrize(
    ("flags", "fast"),
    [({"avx2"}, False), ({"avx2", "avx512_bf16"}, True), ({"amx_bf16"}, True), (set(), False)],
)
def test_bf16_on_processors(monkeypatch: pytest.MonkeyPatch, flags: set[str], fast: bool) -> None:
    monkeypatch.setattr(hardware, "_cpu_info", lambda: ("some processor", frozenset(flags)))
    assert hardware.bf16_is_fast("cpu") is fast
    assert hardware.bf16_is_fast("meta") is False


def test_descriptions_can_be_saved(no_gpu: None) -> None:
    described = hardware.describe_hardware()
    assert json.loads(json.dumps(described)) == described
    assert described["cores"] >= 1
    assert described["cpu"]
    versions = hardware.describe_versions()
    assert versions["torch"] == torch.__version__
    assert versions["python"] == sys.version.split()[0]


def test_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hllm", "recommend", "runs/a b", "--titles", "Heat"])
    assert hardware.command_line() == "hllm recommend 'runs/a b' --titles Heat"
    monkeypatch.setattr(sys, "argv", ["/lib/hllm/__main__.py", "demo"])
    assert hardware.command_line() == "hllm demo"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_gpu_leaves_the_processor_to_others(
    two_gpus: None, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores, set_to, device, inside in (
        (64, 64, "cuda", 4),
        (6, 6, "cuda", 3),
        (64, 2, "cuda", 2),
        (1, 1, "cuda", 1),
        (64, 64, "cpu", 64),
    ):
        monkeypatch.setattr(hardware, "cpu_count", lambda cores=cores: cores)
        torch.set_num_threads(set_to)
        with hardware.few_threads(torch.device(device)):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == set_to
    torch.set_num_threads(64)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    with hardware.few_threads(torch.device("cuda")):
        assert torch.get_num_threads() == 64
    monkeypatch.setattr(hardware, "cpu_count", lambda: 64)
    assert hardware.threads_of_one(3) == 21 and hardware.threads_of_one(100) == 1
