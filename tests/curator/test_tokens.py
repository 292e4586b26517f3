import numpy as np
import pyarrow as pa
import pytest
from lake_cases import LANGUAGES, sentences

from curator.errors import InputError
from curator.tokens import BOUNDARY, RowBatch, TokenCache, Tokenizer, load_tokenizer, train_tokenizer, write_cache

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [train]")

NAMES = sorted(LANGUAGES)
TEXTS = {f"{name}-{i:03}": text for name in NAMES for i, text in enumerate(sentences(name, 30))}


def batches(ids, size):
    for first in range(0, len(ids), size):
        part = ids[first : first + size]
        labels = np.array([NAMES.index(name.partition("-")[0]) for name in part], dtype=np.int32)
        yield RowBatch(sample_id=pa.array(part), text=[TEXTS[name] for name in part], domain=labels)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS.values(), 400)


def word_tokenizer(num_words):
    vocabulary = {BOUNDARY: 0} | {f"w{i}": i for i in range(1, num_words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=BOUNDARY))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend=backend, boundary_id=0)


def rows(cache):
    return {
        sample_id: cache.tokens[start : start + count + 1].tolist()
        for sample_id, start, count in zip(cache.sample_ids().to_pylist(), cache.start, cache.num_targets, strict=True)
    }


def test_every_row_comes_back_between_two_boundaries(tmp_path, tokenizer):
    cache = write_cache(tmp_path, tokenizer, batches(sorted(TEXTS), 7), NAMES)
    found = rows(TokenCache.open(tmp_path))
    assert found.keys() == TEXTS.keys()
    for sample_id, ids in found.items():
        assert ids[0] == ids[-1] == tokenizer.boundary_id
        assert tokenizer.backend.decode(ids[1:-1]) == TEXTS[sample_id]
    assert cache.num_rows == len(TEXTS)


def test_the_cache_does_not_depend_on_the_order_or_size_of_the_batches(tmp_path, tokenizer):
    shuffled = np.random.default_rng(3).permutation(sorted(TEXTS)).tolist()
    caches = []
    for place, ids, size in (("a", sorted(TEXTS), 1000), ("b", shuffled, 11)):
        (tmp_path / place).mkdir()
        caches.append(write_cache(tmp_path / place, tokenizer, batches(ids, size), NAMES))
    one, other = caches
    assert one.sample_ids().to_pylist() == other.sample_ids().to_pylist() == sorted(TEXTS)
    assert rows(one) == rows(other)
    np.testing.assert_array_equal(one.domain, other.domain)
    np.testing.assert_array_equal(one.num_targets, other.num_targets)
    assert one.domains == other.domains == tuple(NAMES)


def test_domain_tokens_counts_the_targets_of_each_domain(tmp_path, tokenizer):
    cache = write_cache(tmp_path, tokenizer, batches(sorted(TEXTS), 7), NAMES)
    expected = [
        sum(len(item.ids) + 1 for item in tokenizer.backend.encode_batch([t for n, t in TEXTS.items() if name in n]))
        for name in NAMES
    ]
    assert cache.domain_tokens().tolist() == expected


@pytest.mark.parametrize(("size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_take_two_bytes_as_long_as_they_fit(tmp_path, size, dtype):
    words = word_tokenizer(size)
    assert words.vocab_size == size
    text = f"w{size - 1} w1"
    batch = RowBatch(sample_id=pa.array(["a"]), text=[text], domain=np.zeros(1, np.int32))
    cache = write_cache(tmp_path, words, [batch], ["only"])
    assert cache.tokens.dtype == dtype
    assert cache.tokens.tolist() == [0, size - 1, 1, 0]


def test_a_cache_is_read_from_the_disk_not_into_memory(tmp_path, tokenizer):
    write_cache(tmp_path, tokenizer, batches(sorted(TEXTS), 50), NAMES)
    assert isinstance(TokenCache.open(tmp_path).tokens, np.memmap)
    assert not (tmp_path / "tokens.raw").exists()


def test_training_is_a_function_of_the_texts(tokenizer):
    again = train_tokenizer(list(TEXTS.values()), 400)
    assert again.fingerprint == tokenizer.fingerprint
    assert train_tokenizer(list(TEXTS.values())[:20], 400).fingerprint != tokenizer.fingerprint
    assert again.vocab_size <= 400


def test_any_text_can_be_tokenized(tokenizer):
    for text in ("日本語 🎈", "\x00\x01", BOUNDARY, " ", "a" * 10_000):
        (ids,) = tokenizer.encode([text])
        assert ids.min() >= 0
        assert ids.max() < tokenizer.vocab_size
        if text != BOUNDARY:
            assert tokenizer.backend.decode(ids[1:-1].tolist()) == text


def test_a_text_that_spells_the_boundary_does_not_make_one(tokenizer):
    (ids,) = tokenizer.encode([f"before {BOUNDARY} after"])
    assert (ids == tokenizer.boundary_id).sum() == 2


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"a model folder needs tokenizer\.json beside config\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    word_tokenizer(10).save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match="names no end-of-text token; set eos_token"):
        load_tokenizer(tmp_path)


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(
        f'{{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "{BOUNDARY}"}}'
    )
    loaded = load_tokenizer(tmp_path)
    texts = list(TEXTS.values())[:5]
    for one, other in zip(loaded.encode(texts), tokenizer.encode(texts), strict=True):
        np.testing.assert_array_equal(one, other)
