"""Refreshing a lake that grows: when it learns, what it publishes, what it refuses. One run is shared, see conftest."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import FAST, sentences, tree, write_rows, write_target

import curator
from connectors.lease import LOCK_FOLDER, hold
from curator.config import LearnConfig, RefreshConfig, TargetConfig
from curator.errors import TryAgainError
from curator.refresh import _unfinished, wanted
from curator.weights import MEAN_TOLERANCE

ANY = {"verdicts": ["converged", "not converged", "no gain", "unstable"], "max_share_change": 1.0}
LEARN = LearnConfig(**FAST)


def refresh(learned, *, learn=LEARN, force=False, dry_run=False, **settings):
    with curator.open_lake(str(learned.lake)) as lake:
        return lake.refresh(str(learned.target), learn=learn, force=force, dry_run=dry_run, **ANY | settings)


def plan(learned, *, learn=LEARN, **settings):
    """The codes of the reasons that a refresh would have to learn."""
    done = refresh(learned, learn=learn, dry_run=True, **settings)
    assert done.outcome in ("planned", "nothing")
    return [reason.code for reason in done.reasons]


def add(learned, name, language, num_rows, domain=None, seed=5):
    return write_rows(
        learned.lake / f"{name}.parquet",
        text=sentences(language, num_rows, seed),
        domain=[domain or language] * num_rows,
    )


def history(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        return [(version.version, version.run_id, version.num_rows) for version in lake.history()]


def edited_record(learned, change):
    path = learned.state / "runs" / learned.run_id / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


# publishing without learning --------------------------------------------------------------------------------------


def test_a_run_that_nobody_published_is_published_once(learned):
    first = refresh(learned)
    assert (first.outcome, first.action, first.version, first.run_id) == ("published", "publish", 1, learned.run_id)
    assert (first.rows_written, first.weights_changed, first.snapshot_in) == (72, True, first.snapshot_out)
    before = tree(learned.lake)
    again = refresh(learned)
    assert (again.outcome, again.action, again.version, again.rows_read) == ("nothing", "nothing", 1, 0)
    assert tree(learned.lake) == before  # not even the lock is touched
    assert history(learned) == [(1, learned.run_id, 72)]


def test_new_rows_of_known_domains_get_their_domains_weight_and_everything_adds_up(learned):
    refresh(learned)
    add(learned, "more", "east", 30)
    (learned.lake / "south.parquet").unlink()
    add(learned, "south-2", "south", 3)
    done = refresh(learned)
    assert (done.outcome, done.action, done.version, done.num_new_rows) == ("published", "publish", 2, 33)
    assert not done.weights_changed
    with curator.open_lake(str(learned.lake)) as lake:
        rows = lake.sql(
            "SELECT domain, count(*), count(sample_weight), count(DISTINCT sample_weight), any_value(domain_weight), "
            "avg(sample_weight) FROM samples GROUP BY ALL ORDER BY domain"
        ).fetchall()
        assert [row[:4] for row in rows] == [("east", 54, 54, 1), ("north", 24, 24, 1), ("south", 3, 3, 1)]
        shares = {row["domain"]: row["domain_weight"] for row in lake.run(learned.run_id).record["domains"]}
        assert {row[0]: row[4] for row in rows} == pytest.approx(shares, rel=1e-6)
        # three times the rows of like length: a third of the weight each, relative to the others
        assert sum(row[1] * row[5] for row in rows) / 81 == pytest.approx(1, abs=MEAN_TOLERANCE)
        per_row = {row[0]: row[5] for row in rows}
        expected = (shares["south"] / 3) / (shares["north"] / 24)
        assert per_row["south"] / per_row["north"] == pytest.approx(expected, rel=0.2)
        assert lake.verify(deep=True).findings == ()
    assert refresh(learned).outcome == "nothing"


def test_carried_token_shares_are_the_domain_weights(learned):
    """The witness counts tokens with the run's own tokenizer instead of estimating them."""
    from curator.carry import weights_now
    from curator.tokens import read_tokenizer

    refresh(learned)
    add(learned, "more", "east", 60, seed=0)
    with curator.open_lake(str(learned.lake)) as lake:
        lake.ingest()
        run = lake.run(learned.run_id)
        table = weights_now(lake, run, (), lambda _: None)
        cache = next((learned.state / "tokens").glob("*/corpus"))
        tokenizer = read_tokenizer(cache)
        texts = dict(lake.sql("SELECT sample_id, text FROM samples").fetchall())
    counted = {domain["domain"]: 0.0 for domain in table.domains}
    for row in table.samples.to_pylist():
        (ids,) = tokenizer.encode([texts[row["sample_id"]]])
        counted[row["domain"]] += row["sample_weight"] * (len(ids) - 1)
    total = sum(counted.values())
    weights = {domain["domain"]: domain["domain_weight"] for domain in table.domains}
    assert {name: value / total for name, value in counted.items()} == pytest.approx(weights, abs=0.02)


def test_new_rows_that_stand_in_the_target_get_no_weight(learned):
    refresh(learned)
    stolen = pq.read_table(learned.target)["text"].to_pylist()[:4]
    write_rows(learned.lake / "more.parquet", text=[*stolen, *sentences("north", 4, 9)], domain=["north"] * 8)
    refresh(learned)
    query = "SELECT text, sample_weight FROM samples WHERE sample_weight IS NULL ORDER BY text"
    with curator.open_lake(str(learned.lake)) as lake:
        assert [row[0] for row in lake.sql(query).fetchall()] == sorted(stolen)
        assert lake.verify().findings == ()


def test_sidecars_are_refreshed_as_well(learned):
    assert refresh(learned, mode="sidecar").version == 1
    add(learned, "more", "east", 5)
    assert refresh(learned, mode="sidecar").version == 2
    assert refresh(learned, mode="sidecar").outcome == "nothing"
    with curator.open_lake(str(learned.lake)) as lake:
        assert lake.sql("SELECT count(sample_weight) FROM samples").fetchall() == [(77,)]
        assert lake.verify().findings == ()
    assert refresh(learned).version == 3  # copies are asked for now


def test_a_lake_that_becomes_what_it_was_gets_a_version_of_its_own_once(learned):
    refresh(learned)
    more = add(learned, "more", "east", 5)
    refresh(learned)
    more.unlink()
    assert (refresh(learned).version, refresh(learned).outcome) == (3, "nothing")
    with curator.open_lake(str(learned.lake)) as lake:
        assert lake.sql("SELECT count(sample_weight), count(*) FROM samples").fetchall() == [(72, 72)]
        assert lake.verify(1).is_sound


def test_a_publication_by_hand_without_weights_for_new_rows_is_completed(learned):
    add(learned, "more", "east", 5)
    with curator.open_lake(str(learned.lake)) as lake:
        assert lake.publish("latest").num_unweighted == 5
    assert refresh(learned).version == 2
    with curator.open_lake(str(learned.lake)) as lake:
        assert lake.sql("SELECT count(*) FROM samples WHERE sample_weight IS NULL").fetchall() == [(0,)]


def test_a_delta_table_is_refreshed_as_well(learned, tmp_path):
    deltalake = pytest.importorskip("deltalake", reason="needs the extra [delta]")
    table = str(tmp_path / "table")
    for path in sorted(learned.lake.glob("*.parquet")):
        rows = pq.read_table(path, columns=["text"])
        rows = rows.append_column("domain", [[path.stem] * len(rows)])
        deltalake.write_deltalake(table, rows, mode="append")
    shutil.copytree(learned.state / "runs", tmp_path / "table" / "_curator" / "runs")

    def refresh_table():
        with curator.open_lake(f"delta:{table}") as lake:
            return lake.refresh(str(learned.target), learn=LEARN, **ANY)

    assert (refresh_table().outcome, refresh_table().outcome) == ("published", "nothing")
    more = pa.table({"text": sentences("east", 5, 5), "domain": ["east"] * 5})
    deltalake.write_deltalake(table, more, mode="append", schema_mode="merge")
    assert (refresh_table().outcome, refresh_table().outcome) == ("published", "nothing")
    shown = deltalake.DeltaTable(table).to_pyarrow_table()
    assert (len(shown), shown["sample_weight"].null_count) == (77, 0)


def test_a_rollback_stays(learned):
    refresh(learned)
    state = learned.state / "runs"
    other = f"{learned.run_id}-again"
    record = json.loads((state / learned.run_id / "run.json").read_text())
    (state / other).mkdir()
    (state / other / "weights.parquet").write_bytes((state / learned.run_id / "weights.parquet").read_bytes())
    (state / other / "run.json").write_text(json.dumps(record | {"run_id": other}))
    assert (refresh(learned).run_id, history(learned)[-1][:2]) == (other, (2, other))
    with curator.open_lake(str(learned.lake)) as lake:
        lake.rollback(1)
    assert (refresh(learned).outcome, history(learned)[-1][:2]) == ("nothing", (3, learned.run_id))
    add(learned, "more", "east", 5)
    assert refresh(learned).run_id == learned.run_id


# rules ------------------------------------------------------------------------------------------------------------


def test_nothing_is_a_reason_to_learn_where_nothing_changed(learned):
    assert plan(learned) == []
    refresh(learned)
    assert plan(learned, new_domain_share=0.0, max_share_change=0.0, max_age_days=9.0) == []


def test_how_the_work_is_shared_out_is_no_reason(learned):
    shared = LEARN.model_copy(update={"tensor_parallel": 2, "micro_batch_tokens": 64})
    assert plan(learned, learn=shared) == []


def test_a_lake_that_was_never_learned_on_is_learned_on(tmp_path, learned):
    (learned.state / "runs" / learned.run_id / "run.json").unlink()
    done = refresh(learned, dry_run=True)
    assert (done.outcome, done.action, done.run_id, done.version) == ("planned", "learn", None, None)
    assert [reason.code for reason in done.reasons] == ["first"]


def test_other_settings_and_another_target_are_reasons_with_words(learned):
    refresh(learned)
    done = refresh(learned, learn=LEARN.model_copy(update={"seed": 7}), dry_run=True)
    assert [reason.code for reason in done.reasons] == ["config"]
    assert done.reasons[0].said == f"since run {learned.run_id}, learn.seed was 0 and is 7"
    rows = pq.read_table(learned.target)
    pq.write_table(rows.take(list(range(len(rows)))[::-1]), learned.target)
    assert plan(learned) == []  # the same texts in another order
    write_target(learned.target, "south")
    assert plan(learned) == ["target"]


def test_a_file_with_another_prior_is_another_setting(learned, tmp_path):
    prior = tmp_path / "prior.json"
    prior.write_text(json.dumps({"east": 0.5, "north": 0.3, "south": 0.2}))
    settings = LEARN.model_copy(update={"weights": LEARN.weights.model_copy(update={"prior": str(prior)})})

    def begin_there(record):
        assert record["prior"] == pytest.approx({"east": 1 / 3, "north": 1 / 3, "south": 1 / 3})
        record["learn"]["weights"]["prior"] = str(prior)
        record["prior"] = {"east": 0.5, "north": 0.3, "south": 0.2}

    edited_record(learned, begin_there)
    refresh(learned, learn=settings)
    assert history(learned) == [(1, learned.run_id, 72)]
    prior.write_text(json.dumps({"south": 2, "east": 5, "north": 3}))  # the same, in another order and unit
    assert plan(learned, learn=settings) == []
    prior.write_text(json.dumps({"east": 0.4, "north": 0.3, "south": 0.2, "west": 0.1}))  # whose rows are to come
    assert plan(learned, learn=settings) == ["config"]
    prior.write_text(json.dumps({"east": 0.4, "north": 0.4, "south": 0.2}))
    [reason] = refresh(learned, learn=settings, dry_run=True).reasons
    assert reason.code == "config"
    assert reason.said.endswith(f", the file learn.weights.prior={str(prior)!r} held another mixture")


def test_an_unfinished_run_is_gone_on_with_from_the_same_prior_alone(learned, tmp_path):
    prior = tmp_path / "prior.json"
    prior.write_text(json.dumps({"east": 0.5, "north": 0.3, "south": 0.2}))
    settings = LEARN.model_copy(update={"weights": LEARN.weights.model_copy(update={"prior": str(prior)})})
    with curator.open_lake(str(learned.lake)) as lake:
        begun = lake.prepare(str(learned.target), run_dir=lake.workdir / "runs" / "begun", config=settings)
        want = wanted(lake, TargetConfig(url=str(learned.target)), settings)
        assert _unfinished(lake, want) == begun
        prior.write_text(json.dumps({"east": 0.3, "north": 0.5, "south": 0.2}))
        assert _unfinished(lake, want) is None


def test_other_columns_are_other_settings(learned):
    refresh(learned)
    with curator.open_lake(str(learned.lake), skip_bad_rows=True) as lake:
        done = lake.refresh(str(learned.target), learn=LEARN, dry_run=True)
    assert done.reasons[0].said.endswith("lake.skip_bad_rows was False and is True")


def test_rows_of_new_domains_are_a_reason_from_a_share_on(learned):
    refresh(learned)
    add(learned, "new", "pqr", 8)
    assert plan(learned, new_domain_share=0.11) == []
    assert plan(learned, new_domain_share=0.09) == ["new_domain"]


def test_a_domain_that_vanished_is_a_reason(learned):
    refresh(learned)
    (learned.lake / "south.parquet").unlink()
    assert plan(learned) == ["vanished_domain"]


def test_a_change_of_shares_is_a_reason_from_a_bound_on(learned):
    refresh(learned)
    add(learned, "more", "east", 24)  # shares 1/3, 1/3, 1/3 → 1/2, 1/4, 1/4: half the sum of differences is 1/6
    assert plan(learned, max_share_change=0.17) == []
    assert plan(learned, max_share_change=0.16) == ["shares"]


def test_leaks_that_the_run_left_out_are_no_change(learned):
    refresh(learned)

    def leave_out(record):
        record["domains"][0]["num_samples"] -= 10
        record["leaks"] |= {"by_domain": {record["domains"][0]["domain"]: 10}, "num_exact": 10}

    edited_record(learned, leave_out)
    assert plan(learned, max_share_change=0.0) == []


def test_age_is_a_reason_from_a_bound_on(learned):
    refresh(learned)
    then = datetime.now(UTC) - timedelta(days=3)
    edited_record(learned, lambda record: record.update(created_at=then.isoformat(timespec="seconds")))
    assert plan(learned, max_age_days=3.1) == []
    assert plan(learned, max_age_days=2.9) == ["age"]


def test_force_is_a_reason(learned):
    refresh(learned)
    done = refresh(learned, force=True, dry_run=True)
    assert (done.action, [reason.code for reason in done.reasons]) == ("learn", ["forced"])


def test_a_dry_run_writes_nothing(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        lake.ingest()
    before = tree(learned.lake)
    done = refresh(learned, dry_run=True)
    assert (done.outcome, done.action, done.version) == ("planned", "publish", None)
    assert [(gate.name, gate.passed) for gate in done.gates] == [
        ("verdict", True),
        ("identities", True),
        ("row_weight", True),
        ("unweighted", True),
    ]
    assert tree(learned.lake) == before


# gates ------------------------------------------------------------------------------------------------------------


def refused(learned, **settings):
    """The gate that did not pass, and nothing written but the lock and what was found of the run's drift."""
    before = tree(learned.lake / "_curator") if (learned.state / "log").exists() else None
    done = refresh(learned, **settings)
    assert done.outcome == "refused"
    (gate,) = [gate for gate in done.gates if not gate.passed]
    after = tree(learned.lake / "_curator")
    if before is not None:
        after, before = ({p for p in found if "/lock/" not in f"/{p}"} for found in (after, before))
        assert before <= after <= before | {f"drift/{done.run_id}.json"}
    return gate


def test_the_status_has_the_weights_of_the_version_not_of_what_would_come(learned):
    """A run of other settings was published by hand: its weights stand in the lake, whatever a refresh would do."""
    with curator.open_lake(str(learned.lake)) as lake:
        lake.publish(learned.run_id)
        found = lake.status(str(learned.target), learn=LEARN.model_copy(update={"seed": 7}))
        weights = {row["domain"]: row["domain_weight"] for row in lake.run(learned.run_id).record["domains"]}
    assert (found.version, found.run_id, found.action) == (1, None, "learn")
    assert {state.domain: state.domain_weight for state in found.changes.domains} == weights
    assert (found.changes.num_new_rows, found.changes.new_domains) == (0, ())


def test_a_verdict_that_is_not_to_be_published_is_refused_again_and_again(learned):
    edited_record(learned, lambda record: record["verdict"].update(status="no gain"))
    usual = list(RefreshConfig().verdicts)
    assert "no gain" not in usual
    for dry_run in (True, False, False):
        gate = refused(learned, verdicts=usual, dry_run=dry_run)
        assert gate.name == "verdict"
        assert gate.said.startswith(f"the verdict on run {learned.run_id} is 'no gain'; published are converged")
    assert history(learned) == []
    assert refresh(learned, verdicts=["no gain"]).version == 1


def test_weights_that_do_not_add_up_are_refused(learned):
    path = learned.state / "runs" / learned.run_id / "weights.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("sample_weight")
    doubled = table.set_column(place, table.schema.field(place), [table["sample_weight"].to_numpy() * 2])
    pq.write_table(doubled, path)
    gate = refused(learned)
    assert (gate.name, "the mean sample_weight is 2" in gate.said) == ("identities", True)


def test_weights_that_drifted_too_far_are_refused_unless_forced(learned):
    refresh(learned)
    state = learned.state / "runs"
    record = json.loads((state / learned.run_id / "run.json").read_text())
    other, names = f"{learned.run_id}-far", [row["domain"] for row in record["domains"]]
    weights = dict(zip(names, (0.98, 0.01, 0.01), strict=True))
    table = pq.read_table(state / learned.run_id / "weights.parquet")
    from curator.carry import weight_table  # the table that such a run would have written

    labels = table["domain"].combine_chunks().dictionary_encode()
    order = labels.dictionary.to_pylist()
    import numpy as np

    far = weight_table(
        table["sample_id"].combine_chunks(),
        labels.indices.to_numpy(),
        table["num_tokens"].to_numpy(),
        order,
        np.array([weights[name] for name in order]),
    )
    (state / other).mkdir()
    pq.write_table(far.samples, state / other / "weights.parquet")
    domains = [row | {"domain_weight": weights[row["domain"]]} for row in record["domains"]]
    (state / other / "run.json").write_text(json.dumps(record | {"run_id": other, "domains": domains}))
    before = sum(abs(weights[row["domain"]] - row["domain_weight"]) for row in record["domains"]) / 2
    gate = refused(learned, max_drift=before - 0.01)
    assert (gate.name, f"changed by {before:.3f}" in gate.said) == ("drift", True)
    done = refresh(learned, max_drift=before + 0.01)
    assert (done.outcome, done.weights_changed, done.run_id) == ("published", True, other)


def test_a_row_that_weighs_too_much_or_too_little_is_refused(learned):
    """One row of a domain that has a third of the weight weighs as much as the eight of another together."""
    refresh(learned)
    (learned.lake / "south.parquet").unlink()
    add(learned, "south-2", "south", 1)
    with curator.open_lake(str(learned.lake)) as lake:
        lake.ingest()
        from curator.carry import weights_now

        weights = weights_now(lake, lake.run(learned.run_id), (), lambda _: None).samples["sample_weight"].to_numpy()
    low, high = float(weights.min()), float(weights.max())
    assert high > 8
    gate = refused(learned, max_row_weight=high - 0.01)
    assert gate.name == "row_weight"
    assert gate.said == (
        f"rows weigh {low:.3g} … {high:.3g}, where the mean is 1; refresh.min_row_weight=0, "
        f"refresh.max_row_weight={high - 0.01:g}"
    )
    assert refused(learned, min_row_weight=low + 0.01).name == "row_weight"
    assert refresh(learned, min_row_weight=low - 0.01, max_row_weight=high + 0.01).version == 2


def test_weights_that_train_worse_models_than_the_last_ones_are_refused(learned):
    """By what the run's record says of the comparison; a run that was not compared passes and says so."""
    refresh(learned)
    state = learned.state / "runs"
    other = f"{learned.run_id}-worse"
    record = json.loads((state / learned.run_id / "run.json").read_text())
    shutil.copytree(state / learned.run_id, state / other)

    def compared(**last):
        (state / other / "run.json").write_text(json.dumps(record | {"run_id": other, "last_version": last or None}))

    figures = {"difference": 0.05, "difference_low": 0.02, "difference_high": 0.08, "num_rows": 10}
    compared(version=1, run_id=learned.run_id, **figures)
    gate = refused(learned)
    assert gate.name == "validation"
    assert gate.said == (
        "models trained on the new domain weights differ from those of version 1 by +0.050 nats per token on 10 target "
        "rows kept out, 95 % interval [+0.020, +0.080]; refresh.max_val_rise=0.01"
    )
    for last, said in (
        ({"run_id": "another", "version": 1} | figures, "not compared: run"),
        ({"run_id": learned.run_id, "version": 1, "why_not": "it was not judged"}, "version 1: it was not judged"),
        ({}, "not compared: run"),
    ):
        compared(**last)
        (gate,) = [gate for gate in refresh(learned, dry_run=True).gates if gate.name == "validation"]
        assert gate.passed
        assert said in gate.said
    compared(version=1, run_id=learned.run_id, **figures)
    assert refresh(learned, max_val_rise=0.02).version == 2
    assert "validation" not in [gate.name for gate in refresh(learned).gates]  # the version is of this run


def test_what_is_learned_anew_is_compared_with_the_version_and_begins_there_if_asked(learned):
    """Two real runs; the trainings that compare them are of two steps."""
    refresh(learned)
    search = {"places": [1.0], "steps": 2, "seeds": 2, "tokens_per_step": 64}
    judged = LearnConfig(**FAST | {"line_search": search, "data_parallel": 1})
    done = refresh(learned, learn=judged, warm_start=True, max_val_rise=10.0, max_drift=1.0)
    assert (done.outcome, done.action, done.version) == ("published", "learn", 2)
    record = json.loads((learned.state / "runs" / done.run_id / "run.json").read_text())
    before = json.loads((learned.state / "runs" / learned.run_id / "run.json").read_text())
    last = record["last_version"]
    assert (last["version"], last["run_id"], last["num_rows"]) == (1, learned.run_id, 10)
    assert last["difference_low"] <= last["difference"] <= last["difference_high"]
    (gate,) = [gate for gate in done.gates if gate.name == "validation"]
    assert f"version 1 by {last['difference']:+.3f} nats per token" in gate.said
    assert record["start"] == pytest.approx({row["domain"]: row["domain_weight"] for row in before["domains"]})
    assert record["prior"] == pytest.approx(dict.fromkeys(record["start"], 1 / 3))  # what it is judged against
    lines = (learned.state / "runs" / done.run_id / "trajectory.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["step"] == 0
    assert before["start"] is None
    assert before["last_version"] is None


def test_too_many_rows_without_a_weight_are_refused(learned):
    add(learned, "new", "pqr", 8)
    gate = refused(learned, new_domain_share=0.5, max_unweighted_share=0.09)
    assert (gate.name, gate.said.startswith("10.0% of the rows get no weight")) == ("unweighted", True)
    assert refresh(learned, new_domain_share=0.5, max_unweighted_share=0.11).version == 1


# the lock and the status ------------------------------------------------------------------------------------------


def test_who_comes_second_is_told_to_try_again_and_a_lapsed_lock_is_taken(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        with hold(lake.destination, LOCK_FOLDER, seconds=60):
            with pytest.raises(TryAgainError, match=r"_curator/lock is held by process \d+"):
                refresh(learned)
            found = lake.status(str(learned.target), learn=LEARN)
            assert (found.version, found.action, found.holder.pid > 0) == (None, "publish", True)
        assert history(learned) == []
    assert refresh(learned).version == 1


def test_a_holder_that_lost_its_lease_does_not_publish(learned):
    """Another takes the lock while the weights are searched for leaks, as if the first had stood still for long."""
    from connectors.lease import Hold
    from connectors.store import list_objects, substore

    add(learned, "more", "east", 5)
    taken = []

    def steal(state):
        if state.stage == "leaks" and not taken:
            with curator.open_lake(str(learned.lake)) as other:
                store = other.destination
                newest = max(int(i.path[-25:-5]) for i in list_objects(store, prefix=LOCK_FOLDER))
                thief = Hold(substore(store, ""), LOCK_FOLDER, 60)
                thief._append(newest + 1, 60)
                taken.append(thief)

    with curator.open_lake(str(learned.lake)) as lake:
        with pytest.raises(TryAgainError, match="expired and was taken by process"):
            lake.refresh(str(learned.target), learn=LEARN, on_progress=steal, **ANY)
        assert lake.history() == []
        assert not (learned.state / "data").exists()
    assert taken


def test_the_status_tells_what_has_no_or_stale_weights(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        first = lake.status(str(learned.target), learn=LEARN)
    assert (first.version, first.age_seconds, first.action, first.holder) == (None, None, "publish", None)
    refresh(learned)
    add(learned, "new", "pqr", 8)
    pq.write_table(pq.read_table(learned.lake / "east.parquet").slice(0, 20), learned.lake / "east.parquet")
    (learned.lake / "south.parquet").unlink()
    with curator.open_lake(str(learned.lake)) as lake:
        found = lake.status(str(learned.target), learn=LEARN)
        assert lake.status(learn=LEARN).reasons == found.reasons  # without a target
    assert (found.version, found.published_run, found.action) == (1, learned.run_id, "learn")
    assert 0 <= found.age_seconds < 600
    changes = found.changes
    assert (changes.files_added, changes.files_changed, changes.files_removed) == (
        ("new.parquet",),
        ("east.parquet",),
        ("south.parquet",),
    )
    states = {state.domain: (state.num_rows, state.num_new, state.domain_weight is None) for state in changes.domains}
    assert states == {"east": (20, 0, False), "north": (24, 0, False), "pqr": (8, 8, True)}
    assert (changes.vanished, changes.new_domains) == (("south",), ("pqr",))
    assert [reason.code for reason in found.reasons] == ["new_domain", "vanished_domain", "shares"]
