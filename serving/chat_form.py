"""The prompt form of chat models with pictures, such as LLaVA: all of it is the checkpoint's own.

The chat template puts a question into the model's words, its processor makes the pixels, and vLLM
says how many tokens a picture takes. Nothing here knows any architecture.
"""

import threading
from collections.abc import Sequence
from typing import Any

from PIL import Image

from facescan.decoding import Pixels
from facescan.errors import EngineError
from serving.weights import Weights

_MAX_MODEL_LEN = 8192
"""Tokens, of models that could take more: a picture in tiles takes up to 2,928 (LLaVA-NeXT)."""


class ChatForm:
    """See `serving.prompt_forms.PromptForm`."""

    def __init__(self, weights: Weights) -> None:
        from transformers import AutoConfig, AutoProcessor, GenerationConfig

        # The Pillow backend is what the published checkpoints were made with; where the default
        # (torchvision) resizes otherwise, some answers differ.
        self._processor = AutoProcessor.from_pretrained(weights.processor, backend="pil")
        if not hasattr(self._processor, "image_processor"):
            raise EngineError(f"{weights.resolved}: its processor takes no pictures")
        if not self._processor.chat_template:
            raise EngineError(
                f"{weights.resolved}: it has no chat template, so how it is to be asked is not "
                "known; put a chat_template.jinja among its processor's files"
            )
        self.vllm_arguments: dict[str, Any] = {"mm_processor_kwargs": {"backend": "pil"}}
        self.attention = "as vLLM has it for this architecture"
        self.size: tuple[int, int] | None = None
        text = AutoConfig.from_pretrained(weights.folder).get_text_config()
        self.max_model_len = min(int(text.max_position_embeddings), _MAX_MODEL_LEN)
        # Twice as many pictures are in memory, with up to 6.8 MB of pixels each (LLaVA-NeXT).
        self.max_num_seqs = 128
        ends = [int(self._processor.tokenizer.eos_token_id)]
        if (weights.folder / "generation_config.json").is_file():
            more = GenerationConfig.from_pretrained(weights.folder).eos_token_id
            ends += more if isinstance(more, list) else [] if more is None else [more]
        self.end_tokens: tuple[int, ...] = tuple(dict.fromkeys(ends))
        self._one_at_a_time = threading.Lock()
        self._check_template(weights.resolved)

    def _check_template(self, resolved: str) -> None:
        from jinja2 import TemplateError

        try:
            text = self._text("?")
        except (TemplateError, TypeError) as error:
            raise EngineError(
                f"{resolved}: its chat template takes no question with a picture: {error!r}"
            ) from error
        place = getattr(self._processor, "image_token", None)
        if place is not None and place not in text:
            raise EngineError(
                f"{resolved}: its chat template leaves the picture ({place}) out: {text!r}"
            )

    def _text(self, prompt: str, answer: str | None = None) -> str:
        question = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        if answer is not None:
            content = [{"type": "text", "text": answer}]
            messages.append({"role": "assistant", "content": content})
        return str(
            self._processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None
            )
        )

    def _tokens(self, text: str) -> list[int]:
        tokenizer = self._processor.tokenizer
        # A template may hold the beginning that the tokenizer adds to other texts.
        begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        return [int(token) for token in tokenizer(text, add_special_tokens=not begun)["input_ids"]]

    def prompt_tokens(self, prompt: str) -> list[int]:
        """See `PromptForm`; a picture's place is the one token that the template has for it."""
        return self._tokens(self._text(prompt))

    def label_tokens(self, prompt: str, label: str) -> list[int]:
        """What the template makes of the label as the assistant's turn, and the turn's end token.

        Raises:
            ValueError: the template writes a turn otherwise than it begins one.
        """
        begun, whole = self._text(prompt), self._text(prompt, label)
        if not whole.startswith(begun) or label not in whole[len(begun) :]:
            raise ValueError(
                f"the chat template begins an answer with {begun[-20:]!r}, but writes {label!r} "
                f"as {whole[-60:]!r}: its tokens after the prompt are not known"
            )
        end = whole.index(label, len(begun)) + len(label)
        before, tokens = self._tokens(begun), self._tokens(whole[:end])
        if tokens[: len(before)] != before:
            raise ValueError(f"the prompt's last token changes when {label!r} follows it")
        return [*tokens[len(before) :], self._end_token(whole[end:].strip())]

    def _end_token(self, rest: str) -> int:
        """The token that ends a turn: the template's, such as `<|im_end|>`, where it writes one."""
        names = self._processor.tokenizer.convert_ids_to_tokens(list(self.end_tokens))
        for token, name in zip(self.end_tokens, names, strict=True):
            if rest.startswith(name):
                return token
        return self.end_tokens[0]

    def text(self, tokens: list[int]) -> str:
        """See `PromptForm`."""
        return str(self._processor.tokenizer.decode(tokens, skip_special_tokens=True))

    def inputs(
        self, renderer: Any, sha256: str, pixels: Pixels, prompts: Sequence[list[int]]
    ) -> list[dict[str, Any]]:
        """See `PromptForm`; the processor runs once for each picture."""
        first = self._rendered(renderer, sha256, pixels, prompts[0])
        (place,) = first["mm_placeholders"]["image"]
        filled = place.offset + place.length
        expanded = first["prompt_token_ids"]
        # In the prompt the picture had fewer tokens, by as many as the whole has grown.
        unfilled = filled - (len(expanded) - len(prompts[0]))
        made = [first]
        for tokens in prompts[1:]:
            if tokens[:unfilled] == prompts[0][:unfilled]:
                made.append(first | {"prompt_token_ids": [*expanded[:filled], *tokens[unfilled:]]})
            else:
                made.append(self._rendered(renderer, sha256, pixels, tokens))
        return made

    def _rendered(
        self, renderer: Any, sha256: str, pixels: Pixels, tokens: list[int]
    ) -> dict[str, Any]:
        prompt = {
            "prompt_token_ids": tokens,
            "multi_modal_data": {"image": Image.fromarray(pixels)},
            "multi_modal_uuids": {"image": [sha256]},
        }
        # Processors keep state, such as a tokenizer's padding, that is not made for threads.
        with self._one_at_a_time:
            try:
                (rendered,) = renderer.render_cmpl([prompt])
            except RuntimeError as error:  # its processor and vLLM do not agree on the picture
                raise ValueError(f"vLLM cannot place the picture: {error}") from error
        return dict(rendered)
