"""What the engine and the logits processor, which vLLM may run elsewhere, say to each other."""

SEQUENCES = "facescan_sequences"
"""Key among a request's extra arguments: the token sequences its answer may be, end included."""

LOGITS_PROCESSOR = "serving.label_logits:LabelLogits"
"""The processor's name as vLLM imports it."""
