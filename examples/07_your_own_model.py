"""Learn with a model and tokenizer of your own: any folder that transformers reads, of a family that optim supports.

    python examples/07_your_own_model.py FOLDER [STEPS]

Here the folder is made first, a small gpt2 with fresh weights, so that the example needs no download.
"""

import sys
from pathlib import Path

import polars as pl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

import curator
from curator import demo_corpus

END = "<|end|>"


def make_model(folder: Path, texts: list[str]) -> Path:
    """A gpt2 of a million parameters, as `save_pretrained` writes it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=[END], initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    set_seed(0)
    end = tokenizer.token_to_id(END)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "n_positions": 256, "n_embd": 96, "n_layer": 3, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=end, eos_token_id=end)).save_pretrained(folder)
    return folder


def main(folder: Path, steps: int) -> None:
    corpus = demo_corpus.build(folder)
    texts = pl.read_parquet(str(corpus.lake / "*.parquet"))["text"].to_list()
    model = make_model(folder / "model", texts)
    with curator.open_lake(str(corpus.lake), text="text", domain="source") as lake:
        # A checkpoint that has been trained wants a lower learning rate: 1e-5 to 1e-4.
        run = lake.learn(str(corpus.target), model=str(model), steps=steps, learning_rate=2e-3)
        print(run)
        print("model:", run.record["learn"]["model"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
