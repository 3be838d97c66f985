"""`SeqTrainer.export_onnx`: the call of torch-rechub, and files that score as the model does."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from hllm.compat import rechub
from hllm.compat.rechub import export as module
from hllm.errors import ConfigError, DataError, HLLMError
from hllm.export import onnx

NEEDS_ONNX = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs the extra export",
)


def model(kind: str, state: str) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 20, "state": state}
    if kind == "hllm":
        return rechub.HLLMModel(torch.randn(30, 16), 30, **sizes)
    return rechub.HSTUModel(30, dqk=8, dv=8, **sizes)


@NEEDS_ONNX
@pytest.mark.slow
@pytest.mark.parametrize("state", ["rechub", "rechub-doc"])
@pytest.mark.parametrize("kind", ["hllm", "hstu"])
def test_the_file_scores_as_the_model_does(kind, state, tmp_path):
    import onnxruntime

    trainer = rechub.SeqTrainer(model(kind, state))
    path = tmp_path / "new" / "model.onnx"
    with pytest.warns(UserWarning, match="opset_version=14: the file has opset 18"):
        assert trainer.export_onnx(str(path), vocab_size=30, opset_version=14, verbose=True) is True
    session = onnxruntime.InferenceSession(str(path))
    for users, events in ((1, 1), (3, 7), (5, 20)):
        tokens, seconds = torch.randint(0, 30, (users, events)), torch.rand(users, events) * 1e7
        (found,) = session.run(["output"], {"seq_tokens": tokens.numpy(), "seq_time_diffs": seconds.numpy()})
        with torch.no_grad():
            wanted = trainer.model.eval()(tokens, seconds)
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


@NEEDS_ONNX
@pytest.mark.slow
def test_sizes_are_fixed_without_dynamic_batch_and_other_scores_are_an_error(tmp_path, monkeypatch):
    import onnxruntime

    trainer = rechub.SeqTrainer(model("hstu", "rechub"))
    assert trainer.export_onnx(tmp_path / "m.onnx", 3, 5, dynamic_batch=False)
    inputs = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).get_inputs()
    assert [(i.name, i.shape) for i in inputs] == [("seq_tokens", [3, 5]), ("seq_time_diffs", [3, 5])]
    right = module.run_onnx
    monkeypatch.setattr(module, "run_onnx", lambda path: lambda *arrays: right(path)(*arrays) * 1.01)
    with pytest.raises(HLLMError, match=r"gives scores that differ by 1\.0e-02"):
        trainer.export_onnx(tmp_path / "m.onnx", 3, 5, dynamic_batch=False)


def test_what_cannot_be_written(monkeypatch):
    trainer = rechub.SeqTrainer(model("hstu", "rechub"))
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(ConfigError, match=r"export_onnx needs onnxscript: pip install 'hllm\[export\]'"):
        trainer.export_onnx("m.onnx")
    monkeypatch.setattr(onnx, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match="onnx_export_kwargs has verbose"):
        trainer.export_onnx("m.onnx", onnx_export_kwargs={"dynamo": True, "verbose": True})
    with pytest.raises(ConfigError, match="seq_len=50 exceeds max_seq_len=20"):
        trainer.export_onnx("m.onnx", dynamic_batch=False)
    with pytest.raises(ConfigError, match="output_path=3"):
        trainer.export_onnx(3)
    other = rechub.SeqTrainer(torch.nn.Linear(2, 2))
    with pytest.raises(DataError, match="Linear has no vocab_size"):
        other.export_onnx("m.onnx")
