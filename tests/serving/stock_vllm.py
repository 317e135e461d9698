"""Greedy answers of vLLM's own PaliGemma, in a process of its own: what our engine is not.

    python stock_vllm.py CHECKPOINT PICTURES PROMPT MAX_TOKENS

PICTURES is an .npz of RGB arrays at the model's size; prints one JSON list of token ids a line.
"""

import json
import os
import sys

import numpy as np


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from PIL import Image
    from vllm import LLM, SamplingParams

    checkpoint, pictures, prompt, max_tokens = sys.argv[1:]
    llm = LLM(
        model=checkpoint,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=64 << 20,
        limit_mm_per_prompt={"image": 1},
        disable_sliding_window=True,
    )
    asked = [
        {"prompt": prompt, "multi_modal_data": {"image": Image.fromarray(pixels)}}
        for pixels in np.load(pictures).values()
    ]
    sampling = SamplingParams(temperature=0, max_tokens=int(max_tokens), detokenize=False)
    for output in llm.generate(asked, sampling, use_tqdm=False):
        print(json.dumps(list(output.outputs[0].token_ids)))


if __name__ == "__main__":
    main()
