"""Exported files in the hands of the packages that they are for, where those are installed."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from export_replays import make_run

from curator.export import export

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def lake(tmp_path):
    """A folder of Parquet files for each domain, with the lengths of the rows; and the run about it."""
    run, lengths = make_run()
    for name, values in lengths.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"length": values, "domain": [name] * len(values)}), tmp_path / name / "train.parquet")
    return run, tmp_path


def token_shares(rows):
    lengths, domains = np.array(rows["length"]), np.array(rows["domain"])
    return {name: lengths[domains == name].sum() / lengths.sum() for name in np.unique(domains)}


LEARNED = {"web": 0.30, "code": 0.25, "chat": 0.15, "books": 0.30}


def test_datasets_interleaves_by_it(lake, tmp_path):
    library = pytest.importorskip("datasets")
    run, folder = lake
    export(run, "datasets", tmp_path / "out", places=f"{folder}/{{domain}}")
    values = json.loads((tmp_path / "out").read_text())
    parts = [library.load_dataset(place, split="train", cache_dir=str(tmp_path / "c")) for place in values["datasets"]]
    mixed = library.interleave_datasets(
        parts,
        probabilities=values["probabilities"],
        stopping_strategy=values["stopping_strategy"],
        seed=values["seed"],
    )
    assert len(mixed) > 10_000
    assert token_shares(mixed[:]) == pytest.approx(LEARNED, abs=0.05)


def test_trl_mixes_by_it(lake, tmp_path, monkeypatch):
    trl = pytest.importorskip("trl.scripts.utils")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "c"))
    run, folder = lake
    export(run, "trl", tmp_path / "out.yaml", places=f"{folder}/{{domain}}")
    values = yaml.safe_load((tmp_path / "out.yaml").read_text())
    parts = [trl.DatasetConfig(**each) for each in values["datasets"]]
    mixed = trl.get_dataset(trl.DatasetMixtureConfig(datasets=parts))["train"]
    assert token_shares(mixed[:]) == pytest.approx(LEARNED, abs=0.02)


def test_axolotl_loads_what_it_keeps(lake, tmp_path, monkeypatch):
    schema = pytest.importorskip("axolotl.utils.schemas.datasets")
    from axolotl.utils.data.shared import datasets_with_name_generator, load_dataset_with_config, merge_datasets
    from axolotl.utils.dict import DictDefault

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "c"))
    run, folder = lake
    export(run, "axolotl", tmp_path / "out.yaml", places=f"{folder}/{{domain}}")
    settings = DictDefault(yaml.safe_load((tmp_path / "out.yaml").read_text()))
    checked = [schema.SFTDataset(**each).model_dump(exclude_none=True) for each in settings.datasets]
    settings = DictDefault({"datasets": checked})
    parts = [load_dataset_with_config(each, False) for each in datasets_with_name_generator(settings.datasets)]
    assert token_shares(merge_datasets(parts, settings)[:]) == pytest.approx(LEARNED, abs=0.02)


def test_datasets_slices_by_what_axolotl_hands_to_it(lake, tmp_path):
    library = pytest.importorskip("datasets")
    run, folder = lake
    export(run, "axolotl", tmp_path / "out", places=f"{folder}/{{domain}}")
    entries = yaml.safe_load((tmp_path / "out").read_text())["datasets"]
    parts = [library.load_dataset(each["path"], split=each["split"], cache_dir=str(tmp_path / "c")) for each in entries]
    assert token_shares(library.concatenate_datasets(parts)[:]) == pytest.approx(LEARNED, abs=0.02)


@pytest.mark.skipif(importlib.util.find_spec("llamafactory") is None, reason="needs llamafactory")
def test_llama_factory_merges_by_it(lake, tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    (root,) = importlib.util.find_spec("llamafactory").submodule_search_locations
    for name in ("llamafactory", "llamafactory.data", "llamafactory.hparams", "llamafactory.extras"):
        package = types.ModuleType(name)  # without what it imports for training
        package.__path__ = [str(Path(root, *name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    from llamafactory.data.data_utils import merge_dataset
    from llamafactory.hparams.data_args import DataArguments

    run, folder = lake
    export(run, "llama-factory", tmp_path / "out.yaml")
    arguments = DataArguments(**yaml.safe_load((tmp_path / "out.yaml").read_text()))
    parts = [
        library.load_dataset(str(folder / name), split="train", cache_dir=str(tmp_path / "c"))
        for name in arguments.dataset
    ]
    mixed = merge_dataset(parts, arguments, seed=0)
    assert len(mixed) > 10_000
    assert token_shares(mixed[:]) == pytest.approx(LEARNED, abs=0.05)


def test_data_juicer_loads_what_it_keeps(lake, tmp_path, monkeypatch):
    builder = pytest.importorskip("data_juicer.core.data.dataset_builder")
    from jsonargparse import Namespace

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "c"))
    run, folder = lake
    for domain in LEARNED:
        path = folder / domain / "train.parquet"
        rows = pq.read_table(path)
        pq.write_table(rows.append_column("text", pa.array(["x"] * rows.num_rows)), path)
    export(run, "data-juicer", tmp_path / "out.yaml", places=f"{folder}/{{domain}}")
    usual = {
        "dataset_path": None,
        "generated_dataset_config": None,
        "validators": [],
        "process": [],
        "text_keys": "text",
        "suffixes": None,
        "add_suffix": False,
        "np": 1,
        "load_dataset_kwargs": None,
        "data_probe_algo": "uniform",
        "data_probe_ratio": 1.0,
    }
    settings = Namespace(**usual | yaml.safe_load((tmp_path / "out.yaml").read_text()))
    mixed = builder.DatasetBuilder(settings, executor_type="default").load_dataset()
    columns = {name: mixed[name] for name in ("length", "domain")}
    assert token_shares(columns) == pytest.approx(LEARNED, abs=0.02)


def test_olmo_core_selects_tokens_by_it(lake, tmp_path):
    mixture = pytest.importorskip("olmo_core.data.source_mixture")
    run, folder = lake
    for row in run.record["domains"]:
        np.zeros(row["num_tokens"], dtype=np.uint16).tofile(folder / f"{row['domain']}.npy")
    export(run, "olmo-core", tmp_path / "out.yaml", places=f"{folder}/{{domain}}.npy")
    sources = mixture.SourceMixtureList.from_yaml(str(tmp_path / "out.yaml"))
    sources.validate()
    config = mixture.SourceMixtureDatasetConfig(
        source_list=sources, requested_tokens=2**19, global_batch_size=2**14, render_tables=False
    )
    from olmo_core.data.types import NumpyDatasetDType

    built = config.build(npdtype=NumpyDatasetDType.uint16.as_np_dtype(), sequence_length=256)
    counts = {each.name: sum(path.tokens for path in each.path_tokens) for each in built.sources}
    total = sum(counts.values())
    assert {name: count / total for name, count in counts.items()} == pytest.approx(LEARNED, abs=0.002)


BRIDGE = {
    "bridge": (),
    "bridge.data": (),
    "bridge.data.samplers": ("build_pretraining_data_loader",),
    "bridge.recipes": (),
    "bridge.recipes.utils": (),
    "bridge.training.config": ("ConfigContainer", "GPTDatasetConfig"),
    "bridge.training.state": ("TrainState",),
    "bridge.training.utils.sig_utils": ("DistributedSignalHandler",),
    "bridge.utils.common_utils": ("print_rank_0",),
}
"""What the readers of Megatron-Bridge stand in or import for training, which needs CUDA, and the names they take."""


@pytest.mark.parametrize("parted", [True, False])
def test_megatron_bridge_reads_its_blends(tmp_path, monkeypatch, parted):
    try:
        root = importlib.metadata.distribution("megatron-bridge").locate_file("megatron")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs megatron-bridge")
    for name, taken in BRIDGE.items():
        module = types.ModuleType(f"megatron.{name}")
        module.__path__ = [str(Path(root, *name.split(".")))]
        for each in taken:
            setattr(module, each, None)
        monkeypatch.setitem(sys.modules, f"megatron.{name}", module)
    reader = importlib.import_module("megatron.bridge.recipes.utils.dataset_utils").get_blend_fields_from_data_paths

    run, _ = make_run()
    export(run, "megatron", tmp_path / "blend.txt", places="data/{domain}")
    done = export(
        run, "megatron-splits", tmp_path / "splits.json", places="data/{split}/{domain}" if parted else "data/{domain}"
    )
    blend, nothing, split = reader(data_args_path=str(tmp_path / "blend.txt"))
    assert (nothing, split) == (None, "9999,8,2")
    assert dict(zip(*blend, strict=True)) == pytest.approx(
        {f"data/{domain}": weight for domain, weight in done.weights.items()}, rel=1e-9
    )
    nothing, per_split, split = reader(per_split_data_args_path=str(tmp_path / "splits.json"))
    assert (nothing, split) == (None, None)
    assert [each is not None for each in per_split] == [True, parted, parted]
    for name, each in zip(("train", "valid", "test"), per_split, strict=True):
        if each is not None:
            place = f"data/{name}" if parted else "data"
            assert each == ([f"{place}/{domain}" for domain in done.weights], blend[1])


@pytest.mark.skipif(importlib.util.find_spec("torchtitan") is None, reason="needs torchtitan")
def test_torchtitan_interleaves_by_it(lake, tmp_path):
    from torch.utils.data import IterableDataset
    from torchtitan.hf_datasets.interleaved import InterleavedDataset

    class Packed(IterableDataset):
        def __init__(self, name):
            self.name = name

        def __iter__(self):
            while True:
                yield self.name

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    export(lake[0], "torchtitan", tmp_path / "out.py")
    names: dict = {}
    exec((tmp_path / "out.py").read_text(), names)
    mixed = iter(
        InterleavedDataset([Packed(name) for name in names["WEIGHTS"]], list(names["WEIGHTS"].values()), seed=0)
    )
    drawn = [next(mixed) for _ in range(20_000)]
    assert {name: drawn.count(name) / len(drawn) for name in LEARNED} == pytest.approx(LEARNED, abs=0.02)


def test_energon_blends_by_it(lake, tmp_path):
    energon = pytest.importorskip("megatron.energon")
    from megatron.energon.epathlib import EPath

    run, folder = lake
    lengths = {}
    for domain in LEARNED:
        lengths[domain] = pq.read_table(folder / domain / "train.parquet")["length"].to_pylist()
        path = folder / f"{domain}.jsonl"
        path.write_text("".join(json.dumps({"domain": domain, "row": n}) + "\n" for n in range(len(lengths[domain]))))
        energon.CrudeJsonlDatasetFactory.prepare_dataset(EPath(path))
    export(run, "energon", tmp_path / "out.yaml", places="{domain}.jsonl")

    @energon.stateless
    def cook(sample):
        return energon.TextSample(**energon.basic_sample_keys(sample), text=json.dumps(sample["json"]))

    class Encoder(energon.DefaultTaskEncoder):
        cookers = [energon.Cooker(cook)]  # noqa: RUF012 - as its documentation has it

    mixed = energon.get_train_dataset(
        tmp_path / "out.yaml",
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
    )
    drawn = iter(energon.get_loader(mixed))
    rows = [json.loads(next(drawn).text) for _ in range(20_000)]
    domains = [row["domain"] for row in rows]
    found = token_shares({"domain": domains, "length": [lengths[row["domain"]][row["row"]] for row in rows]})
    assert found == pytest.approx(LEARNED, abs=0.05)


@pytest.mark.parametrize("unit", ["sequences", "rows"])
def test_streaming_chooses_by_it(lake, tmp_path, unit, monkeypatch):
    if importlib.util.find_spec("torchvision") is None:  # its readers of images, which nothing here needs
        monkeypatch.setitem(sys.modules, "streaming.vision", types.ModuleType("streaming.vision"))
    streaming = pytest.importorskip("streaming")
    run, folder = lake
    for domain in LEARNED:
        rows = pq.read_table(folder / domain / "train.parquet").to_pylist()
        with streaming.MDSWriter(out=str(folder / f"mds-{domain}"), columns={"length": "int", "domain": "str"}) as out:
            for row in rows:
                out.write(row if unit == "rows" else row | {"length": 128})
    export(run, "streaming", tmp_path / "out.yaml", places=f"{folder}/mds-{{domain}}", unit=unit)
    streams = yaml.safe_load((tmp_path / "out.yaml").read_text())["streams"]
    mixed = streaming.StreamingDataset(streams=[streaming.Stream(**each) for each in streams.values()], batch_size=1)
    drawn = list(mixed)
    columns = {name: [row[name] for row in drawn] for name in ("length", "domain")}
    assert len(drawn) > 9000
    assert token_shares(columns) == pytest.approx(LEARNED, abs=0.03 if unit == "rows" else 0.001)


def test_levanter_mixes_by_it(lake, tmp_path):
    text = pytest.importorskip("levanter.data.text")
    import draccus
    import haliax
    import jax
    from levanter.data import ListAsyncDataset
    from levanter.data.text.datasets import DirectDatasetComponent
    from levanter.schedule import BatchSchedule

    export(lake[0], "levanter", tmp_path / "out.yaml")
    values = yaml.safe_load((tmp_path / "out.yaml").read_text())["data"]
    config = draccus.decode(text.LmDataConfig, values | {"components": {name: {} for name in LEARNED}})
    parts = {name: DirectDatasetComponent(datasets={"train": ListAsyncDataset([name] * 100)}) for name in LEARNED}
    config = dataclasses.replace(config, components=parts)
    mixed = config.train_set(haliax.Axis("position", 8), BatchSchedule(4), key=jax.random.PRNGKey(0))
    drawn = asyncio.run(mixed.dataset.get_batch(range(10 * config.mixture_block_size)))
    assert {name: drawn.count(name) / len(drawn) for name in LEARNED} == pytest.approx(LEARNED, abs=0.001)
