"""What the leak guard is for: rows of the target that stand in the lake would win the weights for their domain."""

import pytest
from lake_cases import LANGUAGES, sentences, write_rows

import curator

pytest.importorskip("megatron.core", reason="needs the extra [train]")

TARGET = sentences("fghijpqt", 40)
LEAKED = TARGET[:30]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Learned weights by what becomes of the leaks, which are all in the southern domain."""
    folder = tmp_path_factory.mktemp("leaking")
    for domain in LANGUAGES:
        write_rows(
            folder / "lake" / f"{domain}.parquet",
            text=(texts := sentences(domain, 60) + (LEAKED if domain == "south" else [])),
            domain=[domain] * len(texts),
        )
    write_rows(folder / "target.parquet", text=TARGET)
    found = {}
    for leaks in ("exclude", "keep"):
        with curator.open_lake(str(folder / "lake")) as lake:
            run = lake.learn(
                curator.TargetConfig(url=str(folder / "target.parquet"), leaks=leaks),
                steps=120,
                sequence_length=32,
                vocab_size=300,
                data_parallel=1,
                line_search={"places": []},
            )
            found[leaks] = {row["domain"]: row["domain_weight"] for row in run.record["domains"]}
            assert run.leaks.num_leaks == len(LEAKED)
    return found


def test_kept_leaks_win_for_their_domain(weights):
    assert weights["keep"]["south"] > 0.8
    assert weights["keep"]["south"] > weights["exclude"]["south"] + 0.25
