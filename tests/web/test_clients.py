"""Stock clients, nothing told them but HF_ENDPOINT: huggingface_hub of three generations, PEFT, diffusers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
Live = Callable[..., Any]
VERSIONS = ("0.36.2", "1.33.0", "2.4.0")

PULL_AND_PUSH = """
import hashlib, json, os, sys
from pathlib import Path
import huggingface_hub as hub
api, work, pushed = hub.HfApi(), Path(sys.argv[1]), sys.argv[2]
token, cache = os.environ["TOKEN"], str(work / "cache")
told = {"version": hub.__version__}
told["listed"] = sorted(model.id for model in api.list_models())
told["author"] = [model.id for model in api.list_models(author="team")]
info = api.model_info("team/man-nl", files_metadata=True)
told["sizes"] = {file.rfilename: file.size for file in info.siblings}
folder = Path(hub.snapshot_download("team/man-nl", cache_dir=cache))
told["files"] = sorted(path.name for path in folder.iterdir())
told["commit"] = folder.name == info.sha
weights = hub.hf_hub_download("team/man-nl", "adapter_model.safetensors", revision="stable", cache_dir=cache)
told["sha256"] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
told["blob"] = os.path.basename(os.path.realpath(weights))
half, blob = work / "half", Path(weights).read_bytes()
hub.hf_hub_download("team/man-nl", "adapter_model.safetensors", local_dir=half)
told["local"] = (half / "adapter_model.safetensors").read_bytes() == blob
def refusal(ask):
    try:
        ask()
    except Exception as error:
        return type(error).__name__.removeprefix("Remote")
told["refusals"] = [
    refusal(lambda: api.model_info("nobody/nothing")),
    refusal(lambda: api.model_info("team/man-nl", revision="nope")),
    refusal(lambda: hub.hf_hub_download("team/man-nl", "nope.txt", cache_dir=cache)),
    refusal(lambda: api.upload_folder(repo_id="team/pushed", folder_path=pushed, token="wrong")),
]
told["exists"] = [api.file_exists("team/man-nl", name) for name in ("adapter_config.json", "no")]
told["exists"].append(api.repo_exists("no"))
told["who"] = api.whoami(token=token)["name"]
told["url"] = str(api.create_repo("team/pushed", token=token, exist_ok=True))
commit = api.upload_folder(repo_id="team/pushed", folder_path=pushed, token=token)
told["same"] = api.upload_folder(repo_id="team/pushed", folder_path=pushed, token=token).oid == commit.oid
told["pushed"] = api.model_info("team/pushed").sha == commit.oid
def put(name, data):
    api.upload_file(repo_id="team/pushed", path_or_fileobj=data, path_in_repo=name, token=token)
put("README.md", b"# New\\n\\nAnother task.\\n")
told["card"] = Path(hub.hf_hub_download("team/pushed", "README.md", cache_dir=cache)).read_text()
api.create_tag("team/pushed", tag="prod", token=token)
told["tags"] = sorted(tag.name for tag in api.list_repo_refs("team/pushed").tags)
told["commits"] = len(api.list_repo_commits("team/pushed"))
try:
    put("adapter_model.safetensors", b"junk")
except Exception as error:
    told["junk"] = str(error)
api.delete_repo("team/pushed", token=token)
told["deleted"] = not api.repo_exists("team/pushed")
print(json.dumps(told))
"""

INTERRUPTED = """
import sys
from pathlib import Path
import huggingface_hub as hub
from huggingface_hub.file_download import http_get
whole = Path(sys.argv[2]).read_bytes()
path = Path(sys.argv[1]) / "half"
path.write_bytes(whole[:1000])
with path.open("ab") as file:
    url = hub.hf_hub_url("team/man-nl", "adapter_model.safetensors")
    http_get(url, file, resume_size=1000, expected_size=len(whole))
print(path.read_bytes() == whole)
"""

PEFT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
def logits(adapter, **asked):
    base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    model = base if adapter is None else PeftModel.from_pretrained(base, adapter, **asked)
    with torch.no_grad():
        return model(torch.arange(8)[None]).logits
pulled = logits("team/tiny", revision="v1")
close = [torch.allclose(pulled, logits(other), atol=1e-5) for other in (sys.argv[2], None)]
print(*close)
"""

DIFFUSERS = """
import sys, warnings
warnings.simplefilter("ignore")
import diffusers, torch
def pipeline():
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
    )
    parts = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    return diffusers.StableDiffusion3Pipeline(transformer=model, scheduler=None, **parts)
def answer(pipe):
    torch.manual_seed(1)
    with torch.no_grad():
        return pipe.transformer(
            torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16), torch.randn(1, 16), torch.tensor([5.0]), return_dict=False
        )[0]
if sys.argv[2] == "make":
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    pipe = pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    state = get_peft_model_state_dict(pipe.transformer)
    diffusers.StableDiffusion3Pipeline.save_lora_weights(sys.argv[1], transformer_lora_layers=state)
else:
    pulled, local = pipeline(), pipeline()
    pulled.load_lora_weights("team/picture")
    local.load_lora_weights(sys.argv[1])
    one, other, bare = answer(pulled), answer(local), answer(pipeline())
    print(torch.allclose(one, other, atol=1e-5), torch.allclose(one, bare, atol=1e-5), float((one - other).abs().max()))
"""


@cache
def library(version: str, folder: Path) -> str | None:
    """A folder with that huggingface_hub and what it needs; None where there is no package index."""
    target = folder / f"hub-{version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(target),
    ]
    done = subprocess.run([*command, f"huggingface_hub=={version}"], capture_output=True, text=True)
    return str(target) if done.returncode == 0 else None


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("libraries")


def client(script: str, url: str, *arguments: object, library: str = "", token: str = "") -> str:
    """What a script prints in a process of its own that knows of the server by HF_ENDPOINT alone."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    path = os.pathsep.join(part for part in (library, own.get("PYTHONPATH", "")) if part)
    variables = {
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(Path(str(arguments[0])).parent / "hf-home"),
        "TOKEN": token,
        "PYTHONPATH": path,
    }
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=own | variables, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_huggingface_hub(
    version: str, live: Live, tokens: Any, tmp_path: Path, libraries: Path, make_adapter: Any
) -> None:
    where = library(version, libraries)
    if where is None:
        pytest.skip(f"huggingface_hub {version} cannot be installed: no package index answers")
    url = live().url
    work = tmp_path / "work"
    work.mkdir()
    printed = client(PULL_AND_PUSH, url, work, make_adapter(), library=where, token=tokens.by_kind["team-write"])
    told = json.loads(printed.splitlines()[-1])
    assert told.pop("blob") == told.pop("sha256")
    assert "too few for a safetensors file" in told.pop("junk")
    assert told == {
        "version": version,
        "listed": ["man-de", "other/src-rust", "team/man-nl"],
        "author": ["team/man-nl"],
        "sizes": told["sizes"] | {"adapter_config.json": 1111, "adapter_model.safetensors": 476224},
        "files": ["README.md", "adapter_config.json", "adapter_model.safetensors"],
        "commit": True,
        "local": True,
        "refusals": ["RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", told["refusals"][3]],
        "exists": [True, False, False],
        "who": "team-writer",
        "url": f"{url}/team/pushed",
        "same": True,
        "pushed": True,
        "card": "# New\n\nAnother task.\n",
        "tags": ["prod", "v1"],
        "commits": 1,
        "deleted": True,
    }  # fmt: skip
    assert told["refusals"][3] is not None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stopped_download_goes_on(version: str, live: Live, home: Path, tmp_path: Path, libraries: Path) -> None:
    from lorareg.compress.materialize import materialize

    where = library(version, libraries)
    if where is None:
        pytest.skip(f"huggingface_hub {version} cannot be installed: no package index answers")
    materialize(home, "team/man-nl", tmp_path / "whole")
    work = tmp_path / "work"
    work.mkdir()
    asked = client(INTERRUPTED, live().url, work, tmp_path / "whole" / "adapter_model.safetensors", library=where)
    assert asked.strip() == "True"


@pytest.mark.filterwarnings("ignore")  # what the other libraries warn of is theirs
def test_peft(live: Live, home: Path, tmp_path: Path, tiny_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from lorareg.registry.peft_format import read_folder
    from lorareg.registry.store import Registry

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_path)
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    with torch.no_grad():
        model.save_pretrained(tmp_path / "tiny")
    with Registry.open(home, create=False) as registry:
        registry.ingest(read_folder(tmp_path / "tiny"), name="team/tiny")
    printed = client(PEFT, live().url, tiny_path, tmp_path / "tiny")
    assert printed.split()[:2] == ["True", "False"], printed


def test_diffusers(live: Live, home: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("torch")
    from lorareg.registry.peft_format import read_adapter
    from lorareg.registry.store import Registry

    client(DIFFUSERS, "http://127.0.0.1:9", tmp_path / "picture", "make")
    with Registry.open(home, create=False) as registry:
        path = tmp_path / "picture" / "pytorch_lora_weights.safetensors"
        registry.ingest(read_adapter(path, "some/transformer"), name="team/picture")
    printed = client(DIFFUSERS, live().url, tmp_path / "picture", "load")
    assert printed.split()[:2] == ["True", "False"], printed
