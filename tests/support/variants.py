"""Every kind of adapter that PEFT, diffusers and kohya-ss write, made with the real libraries on tiny models."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaForCausalLM

WEIGHTS = "adapter_model.safetensors"
TOKENS = torch.arange(24).reshape(2, 12) % 64


@dataclass(frozen=True)
class Variant:
    """One kind of adapter: how it is made, and what the real library computes with it."""

    name: str
    says: str  # in the support matrix
    make: Callable[[Path], None]  # writes the adapter into an empty folder
    run: Callable[[Path], Tensor]  # loads the folder with the real library
    kept: str = "coded"  # coded: within a tolerance; exact: always byte for byte


def llama(**changes: Any) -> LlamaForCausalLM:
    """A base model that is the same each time."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes})).eval()


class Convolutions(nn.Module):
    """Convolutions of one to three dimensions, of which PEFT adapts each in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(3, 8, 1)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.line = nn.Conv1d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        planes = torch.relu(self.wide(torch.relu(self.narrow(images))))
        return torch.as_tensor(self.head(self.line(planes.flatten(2)).mean(-1)))


def convolutions() -> Convolutions:
    torch.manual_seed(0)
    return Convolutions().eval()


@dataclass(frozen=True)
class PeftCase:
    """A config of PEFT on one of the base models."""

    config: Callable[[], Any]
    base: Callable[[], nn.Module] = llama
    inputs: Mapping[str, Tensor] = field(default_factory=lambda: {"input_ids": TOKENS})
    dtype: torch.dtype = torch.float32
    saved_as_plain: bool = False  # as PEFT says to do before saving, since it cannot load what says how it began
    prepare: Callable[[nn.Module, Any], None] = lambda model, config: None

    def make(self, folder: Path) -> None:
        model = self.base()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = self.config()
            self.prepare(model, config)
            adapted = peft.get_peft_model(model, config)  # type: ignore[arg-type]
            _randomise(adapted)
            if self.saved_as_plain:
                adapted.peft_config["default"].init_lora_weights = True
            adapted.save_pretrained(str(folder))
        _name_base_model(folder)
        if self.dtype != torch.float32:
            tensors = {key: value.to(self.dtype) for key, value in load_file(folder / WEIGHTS).items()}
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    def run(self, folder: Path) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(self.base(), str(folder)).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            output = model(**self.inputs)
        return torch.as_tensor(getattr(output, "logits", output))


def _randomise(model: nn.Module) -> None:
    """Trained weights are nothing like zero: give every parameter that is trained something of its own."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and re.search(r"lora_|trainable_tokens|modules_to_save|bias|vera_|ia3_", name):
                if "magnitude" in name or "ia3" in name:
                    parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))


def _name_base_model(folder: Path) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "tiny/base-model"
    config["a_field_of_tomorrow"] = {"kept": True}
    path.write_text(json.dumps(config, indent=2))


def _lora(**changes: Any) -> Callable[[], Any]:
    if changes.get("init_lora_weights") == "eva":
        changes["eva_config"] = peft.EvaConfig()
    defaults: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    return lambda: peft.LoraConfig(**{**defaults, **changes})


def _corda(model: nn.Module, config: Any) -> None:
    from peft.tuners.lora.corda import preprocess_corda

    def look() -> None:
        with torch.no_grad():
            model(input_ids=TOKENS[:1])

    preprocess_corda(model, config, run_model=look)


def _lora_ga(model: nn.Module, config: Any) -> None:
    from peft.tuners.lora.loraga import preprocess_loraga

    preprocess_loraga(model, config, lambda: model(input_ids=TOKENS, labels=TOKENS).loss.backward())


def _make_loftq(folder: Path) -> None:
    """What LoftQ leaves is a plain LoRA and a config that says so; PEFT quantises for it on an accelerator alone."""
    PeftCase(_lora()).make(folder)
    path = folder / "adapter_config.json"
    told = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    path.write_text(json.dumps(json.loads(path.read_text()) | told, indent=2))


def _run_loftq(folder: Path) -> Tensor:
    config = peft.PeftConfig.from_pretrained(str(folder))
    config.init_lora_weights = True  # type: ignore[attr-defined]
    model = peft.PeftModel.from_pretrained(llama(), str(folder), config=config).eval()
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=TOKENS).logits)


def _peft(name: str, says: str, config: Callable[[], Any], kept: str = "coded", **case: Any) -> Variant:
    made = PeftCase(config, **case)
    return Variant(name, says, made.make, made.run, kept)


IMAGES = {"images": torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)}

PEFT_VARIANTS = [
    _peft("lora", "LoRA on linear layers", _lora()),
    _peft("rslora", "`use_rslora`", _lora(use_rslora=True)),
    _peft(
        "patterns",
        "`rank_pattern`, `alpha_pattern`",
        _lora(rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.self_attn.v_proj": 3}),
    ),
    _peft("dora", "`use_dora`: magnitudes", _lora(use_dora=True)),
    _peft("embeddings", "embeddings (`lora_embedding_A`)", _lora(target_modules=["q_proj", "embed_tokens"])),
    _peft("head", "`lm_head` targeted, saved whole beside it", _lora(target_modules=["q_proj", "lm_head"])),
    _peft(
        "convolutions",
        "convolutions of one and two dimensions",
        _lora(target_modules=["narrow", "wide", "line", "head"]),
        base=convolutions,
        inputs=IMAGES,
    ),
    _peft(
        "bias",
        "`bias='all'`",
        _lora(target_modules=["narrow", "head"], bias="all"),
        base=convolutions,
        inputs=IMAGES,
    ),
    _peft("lora_bias", "`lora_bias`", _lora(lora_bias=True)),
    _peft("modules_to_save", "`modules_to_save`", _lora(modules_to_save=["lm_head", "input_layernorm"])),
    _peft("tokens", "`trainable_token_indices`", _lora(trainable_token_indices=[1, 5, 9])),
    _peft("parameters", "`target_parameters`", _lora(target_parameters=["k_proj.weight"])),
    _peft("replicated", "`layer_replication`", _lora(layer_replication=[[0, 2], [1, 2]])),
    _peft("alora", "`alora_invocation_tokens`", _lora(alora_invocation_tokens=[3, 4], task_type="CAUSAL_LM")),
    *(
        _peft(f"init_{kind}", f"`init_lora_weights={kind!r}`", _lora(init_lora_weights=kind))
        for kind in ("eva", "gaussian", "olora", "orthogonal", "pissa")
    ),
    _peft(
        "init_corda",
        "`init_lora_weights='corda'`",
        lambda: peft.LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights="corda",
            corda_config=CordaConfig(corda_method="kpm"),
        ),
        prepare=_corda,
        saved_as_plain=True,
    ),
    _peft(
        "init_lora_ga",
        "`init_lora_weights='lora_ga'`",
        lambda: peft.LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
        ),
        prepare=_lora_ga,
    ),
    Variant("init_loftq", "`init_lora_weights='loftq'`, the config alone", _make_loftq, _run_loftq),
    _peft("bf16", "bfloat16", _lora(), dtype=torch.bfloat16),
    _peft("fp16", "float16", _lora(), dtype=torch.float16),
    _peft("fp8_e4m3", "float8 (e4m3)", _lora(), dtype=torch.float8_e4m3fn),
    _peft("fp8_e5m2", "float8 (e5m2)", _lora(), dtype=torch.float8_e5m2),
    _peft(
        "ia3",
        "IA3",
        lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        kept="exact",
    ),
    _peft("vera", "VeRA", lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]), kept="exact"),
    _peft(
        "prompt_tuning",
        "prompt tuning",
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        kept="exact",
    ),
    _peft(
        "adalora", "AdaLoRA", lambda: peft.AdaLoraConfig(r=4, target_modules=["q_proj"], total_step=10), kept="exact"
    ),
    _peft("loha", "LoHa", lambda: peft.LoHaConfig(r=4, alpha=8, target_modules=["q_proj"]), kept="exact"),
    _peft("lokr", "LoKr", lambda: peft.LoKrConfig(r=4, alpha=8, target_modules=["q_proj"]), kept="exact"),
]


def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def _trained_unet(convolved: bool) -> tuple[Any, dict[str, Tensor]]:
    model = unet()
    targets = ["to_q", "to_v", *(["conv1"] if convolved else [])]
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    _randomise(model)
    return model, peft.get_peft_model_state_dict(model)


def _run_unet(folder: Path, name: str) -> Tensor:
    loader = diffusers.loaders.lora_pipeline.StableDiffusionLoraLoaderMixin
    model = unet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, alphas, metadata = loader.lora_state_dict(
            str(folder), weight_name=name, unet_config=model.config, return_lora_metadata=True
        )
        loader.load_lora_into_unet(state, network_alphas=alphas, unet=model, metadata=metadata)
    torch.manual_seed(2)
    with torch.no_grad():
        return torch.as_tensor(model(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 16)).sample)


def _make_diffusers(folder: Path, *, metadata: bool) -> None:
    model, state = _trained_unet(convolved=True)
    config = model.peft_config["default"].to_dict() if metadata else None
    if config is not None:
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    diffusers.loaders.lora_pipeline.StableDiffusionLoraLoaderMixin.save_lora_weights(
        str(folder), unet_lora_layers=state, unet_lora_adapter_metadata=config
    )
    (folder / "README.md").write_text("---\nbase_model: tiny/unet\n---\n\nA tiny style.\n")


def text_encoder() -> Any:
    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()


def _of_text_encoder() -> Any:
    return peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "out_proj"])


def _make_with_text_encoder(folder: Path) -> None:
    _, state = _trained_unet(convolved=False)
    encoder = peft.inject_adapter_in_model(_of_text_encoder(), text_encoder())
    _randomise(encoder)
    diffusers.loaders.lora_pipeline.StableDiffusionLoraLoaderMixin.save_lora_weights(
        str(folder),
        unet_lora_layers=state,
        text_encoder_lora_layers=diffusers.utils.convert_state_dict_to_diffusers(
            peft.get_peft_model_state_dict(encoder)
        ),
    )
    (folder / "README.md").write_text("---\nbase_model: tiny/unet\n---\n\nA tiny style, and its words.\n")


def _run_with_text_encoder(folder: Path, name: str) -> Tensor:
    """What the text encoder says, and what the unet draws.

    transformers loads adapters of PEFT 0.22 and later alone, so the encoder's part is given to PEFT itself.
    """
    saved = {key.removeprefix("text_encoder."): value for key, value in load_file(folder / name).items()}
    encoder = peft.inject_adapter_in_model(_of_text_encoder(), text_encoder())
    own = diffusers.utils.convert_state_dict_to_peft({k: v for k, v in saved.items() if not k.startswith("unet.")})
    told = peft.set_peft_model_state_dict(encoder, own)
    assert not told.unexpected_keys
    with torch.no_grad():
        said = encoder(TOKENS[:1, :8]).last_hidden_state
        assert not torch.allclose(said, text_encoder()(TOKENS[:1, :8]).last_hidden_state)
    return torch.cat([said.flatten(), _run_unet(folder, name).flatten()])


def _make_kohya(folder: Path, *, dora: bool) -> None:
    _, state = _trained_unet(convolved=False)
    named = {f"unet.{key.replace('.weight', '.default.weight')}": value for key, value in state.items()}
    tensors = {}
    for key, value in named.items():
        module, _, factor = key.removesuffix(".default.weight").rpartition(".lora_")
        name = "lora_unet_" + module.removeprefix("unet.").replace(".", "_")
        tensors[f"{name}.lora_{'down' if factor == 'A' else 'up'}.weight"] = value.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(8.0)
        if dora and factor == "B":
            tensors[f"{name}.dora_scale"] = 1 + torch.rand(len(value), 1)
    metadata = {"ss_base_model_version": "sd_v1", "ss_network_dim": "4", "ss_tag_frequency": '{"a": {"b": 1}}'}
    save_file(tensors, folder / "style.safetensors", metadata=metadata)


def transformer() -> Any:
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    ).eval()


def _make_transformer(folder: Path) -> None:
    model = transformer()
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"]))
    _randomise(model)
    state = peft.get_peft_model_state_dict(model)
    diffusers.StableDiffusion3Pipeline.save_lora_weights(str(folder), transformer_lora_layers=state)
    (folder / "README.md").write_text("---\nbase_model:\n- tiny/transformer\n---\n")


def _run_transformer(folder: Path) -> Tensor:
    model = transformer()
    model.load_lora_adapter(str(folder), prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
    torch.manual_seed(2)
    inputs = (torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16), torch.randn(1, 16), torch.tensor([3]))
    with torch.no_grad():
        return torch.as_tensor(model(*inputs).sample)


DIFFUSERS_VARIANTS = [
    Variant("diffusers_transformer", "LoRA of a transformer (SD3's)", _make_transformer, _run_transformer),
    Variant(
        "diffusers",
        "`pytorch_lora_weights.safetensors` with `lora_adapter_metadata`",
        lambda folder: _make_diffusers(folder, metadata=True),
        lambda folder: _run_unet(folder, "pytorch_lora_weights.safetensors"),
    ),
    Variant(
        "diffusers_plain",
        "the same without metadata",
        lambda folder: _make_diffusers(folder, metadata=False),
        lambda folder: _run_unet(folder, "pytorch_lora_weights.safetensors"),
    ),
    Variant(
        "diffusers_text_encoder",
        "LoRA of a unet and of its text encoder in one file",
        _make_with_text_encoder,
        lambda folder: _run_with_text_encoder(folder, "pytorch_lora_weights.safetensors"),
    ),
]

KOHYA_VARIANTS = [
    Variant(
        "kohya",
        "`lora_unet_….lora_down.weight`, `.alpha`, `ss_*`",
        lambda folder: _make_kohya(folder, dora=False),
        lambda folder: _run_unet(folder, "style.safetensors"),
    ),
    Variant(
        "kohya_dora",
        "the same with `dora_scale`",
        lambda folder: _make_kohya(folder, dora=True),
        lambda folder: _run_unet(folder, "style.safetensors"),
    ),
]

VARIANTS = {"PEFT": PEFT_VARIANTS, "diffusers": DIFFUSERS_VARIANTS, "kohya-ss": KOHYA_VARIANTS}
