"""LLMs in GGUF, the format of llama.cpp: find a file, dequantize it once, and keep the result as a model folder."""
