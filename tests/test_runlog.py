import json
import logging

import numpy as np
import pytest
from synthetic_runs import configure, finish, record, scores, write_run, write_world

from bootstrap.errors import DataError
from bootstrap.records import SCHEMA, StepRecord
from bootstrap.runlog import (
    RowWriter,
    RunWriter,
    load_run,
    load_runs,
    read_rows,
    truncate_rows,
)


@pytest.fixture
def rows_path(tmp_path):
    """A file with rows of the steps 0, 1, 2, 3."""
    with RowWriter(tmp_path / "ideal.jsonl") as writer:
        for step in range(4):
            writer.write({"step": step, "test_error": 0.5})
    return tmp_path / "ideal.jsonl"


def steps_in(path):
    return [row["step"] for row in read_rows(path)]


def tear(path):
    """What a killed writer leaves behind."""
    path.write_bytes(path.read_bytes() + b'{"step": 4, "test_er')


def test_only_the_first_row_carries_the_schema(rows_path):
    assert [row.get("schema") for row in read_rows(rows_path)] == [SCHEMA, None, None, None]


def test_an_appended_file_has_one_schema_row(rows_path):
    with RowWriter(rows_path) as writer:
        writer.write({"step": 4})
    assert [row.get("schema") for row in read_rows(rows_path)] == [SCHEMA, None, None, None, None]


def test_a_row_that_is_not_a_number_is_refused_when_written(tmp_path):
    with RowWriter(tmp_path / "ideal.jsonl") as writer, pytest.raises(ValueError, match="JSON"):
        writer.write({"step": 0, "test_error": float("nan")})


def test_a_torn_last_line_is_left_out_with_a_warning(rows_path, caplog):
    tear(rows_path)
    with caplog.at_level(logging.WARNING):
        assert steps_in(rows_path) == [0, 1, 2, 3]
    assert "torn" in caplog.text


def test_a_writer_removes_a_torn_line_before_it_appends(rows_path):
    tear(rows_path)
    with RowWriter(rows_path) as writer:
        writer.write({"step": 4})
    assert steps_in(rows_path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", [b'{"step": 1, "te', b"", b"[1]", b'{"loss": 1}'], ids=repr)
def test_a_bad_line_in_the_middle_is_an_error_that_names_its_row(rows_path, bad):
    lines = rows_path.read_bytes().split(b"\n")
    rows_path.write_bytes(b"\n".join([lines[0], bad, *lines[2:]]))
    with pytest.raises(DataError, match=r"ideal\.jsonl:2"):
        read_rows(rows_path)


@pytest.mark.parametrize("row", [0, -2], ids=["first", "last"])
def test_a_bad_line_that_ends_as_a_whole_one_is_no_torn_one(rows_path, row):
    lines = rows_path.read_bytes().split(b"\n")
    lines[row] = b'{"step": 1, "te'
    rows_path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=rf"ideal\.jsonl:{row % len(lines) + 1}"):
        read_rows(rows_path)


def test_rows_of_a_newer_schema_are_refused(tmp_path):
    (tmp_path / "ideal.jsonl").write_text(f'{{"schema": {SCHEMA + 1}, "step": 0}}\n')
    with pytest.raises(DataError, match="newer"):
        read_rows(tmp_path / "ideal.jsonl")


def test_truncating_keeps_the_rows_before_the_step(rows_path):
    truncate_rows(rows_path, 2)
    assert steps_in(rows_path) == [0, 1]


def test_truncated_rows_are_kept_as_orphans(rows_path):
    truncate_rows(rows_path, 2)
    assert steps_in(rows_path.with_name("ideal.jsonl.orphan")) == [2, 3]


def test_rows_that_are_truncated_later_join_those_that_were_before(rows_path):
    truncate_rows(rows_path, 3)
    with RowWriter(rows_path) as writer:
        writer.write({"step": 3, "test_error": 0.25})
    truncate_rows(rows_path, 2)
    found = read_rows(rows_path.with_name("ideal.jsonl.orphan"))
    assert [(row["step"], row["test_error"]) for row in found] == [(3, 0.5), (2, 0.5), (3, 0.25)]


def test_truncating_drops_a_torn_line_without_an_orphan(rows_path):
    tear(rows_path)
    truncate_rows(rows_path, 9)
    assert rows_path.read_bytes().endswith(b"\n")
    assert steps_in(rows_path) == [0, 1, 2, 3]
    assert not rows_path.with_name("ideal.jsonl.orphan").exists()


def test_truncating_after_the_last_row_changes_no_byte(rows_path):
    before = rows_path.read_bytes()
    truncate_rows(rows_path, 4)
    assert rows_path.read_bytes() == before


def test_truncating_a_missing_file_makes_none(tmp_path):
    truncate_rows(tmp_path / "none.jsonl", 2)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read_back(tmp_path):
    run = write_world(tmp_path, 40, [record(0, 0.9, 0.8), record(3, 0.5, 0.25)])
    assert run.real[40].steps.tolist() == [0, 3]
    assert run.real[40].test_error.tolist() == [[0.9, 0.5]]
    assert run.real[40].train_error.tolist() == [[0.8, 0.25]]


def test_columns_are_float64_with_a_row_per_seed(tmp_path):
    run = write_run(tmp_path, seeds=(3, 11))
    assert run.seeds == (3, 11)
    assert run.ideal.samples_seen.shape == (2, len(run.steps))
    assert run.ideal.samples_seen.dtype == np.float64


def test_seeds_are_stacked_on_the_union_of_steps_with_nan_where_missing(tmp_path):
    write_world(tmp_path, None, [record(0, 0.9), record(1, 0.8)], seed=0)
    run = write_world(tmp_path, None, [record(0, 0.7), record(2, 0.6)], seed=1)
    assert run.steps.tolist() == [0, 1, 2]
    expected = [[0.9, 0.8, np.nan], [0.7, np.nan, 0.6]]
    np.testing.assert_array_equal(run.ideal.test_error, expected)


def test_null_and_nan_values_are_read_as_nan(tmp_path):
    run = write_world(tmp_path, None, [record(0, 0.9)])
    with (run.path / "seed-0" / "ideal.jsonl").open("a") as file:
        file.write('{"step": 1, "test_error": null}\n{"step": 2, "test_error": NaN}\n')
    np.testing.assert_array_equal(load_run(run.path).ideal.test_error, [[0.9, np.nan, np.nan]])


def test_the_ideal_world_has_no_train_columns(tmp_path):
    run = write_run(tmp_path)
    with pytest.raises(AttributeError, match="train_error"):
        _ = run.ideal.train_error


def test_what_a_choice_adds_becomes_a_column_with_a_prefix(tmp_path):
    run = write_world(tmp_path, None, [record(0, 0.9, level=0.25)])
    assert run.ideal.columns["extra.level"].tolist() == [[0.25]]


def test_step_records_go_to_their_own_file(tmp_path):
    step = StepRecord(step=1, test=scores(0.5), batch_loss=1.5, batch_error=0.75)
    run = write_world(tmp_path, 40, [record(0, 0.9, 0.8), step])
    assert run.real[40].steps.tolist() == [0]
    assert run.curves("real-n40-every-step").batch_error.tolist() == [[0.75]]
    assert run.n_samples == (40,)


def test_runs_are_found_at_any_depth(tmp_path):
    write_run(tmp_path / "b" / "deeper")
    write_run(tmp_path / "a")
    assert [run.path for run in load_runs(tmp_path)] == [
        tmp_path / "a" / "run",
        tmp_path / "b" / "deeper" / "run",
    ]


def test_a_run_without_records_is_loaded(tmp_path):
    (tmp_path / "pair.json").write_text("{}")
    run = load_run(tmp_path)
    assert (run.seeds, run.n_samples, run.steps.tolist()) == ((), (), [])
    assert (run.status, len(run.to_pandas())) == ("partial", 0)


def test_a_folder_without_a_pair_is_not_a_run(tmp_path):
    with pytest.raises(DataError, match=r"pair\.json"):
        load_run(tmp_path)


def test_a_run_is_partial_until_every_world_of_every_seed_is_done(tmp_path):
    run = finish(write_run(tmp_path, n_samples=(40,), seeds=(0, 1)))
    (run.path / "seed-1" / "real-n40.done.json").unlink()
    assert load_run(run.path).status == "partial"


def test_a_run_is_complete_when_every_world_of_every_seed_is_done(tmp_path):
    assert finish(write_run(tmp_path, n_samples=(40,), seeds=(0, 1))).status == "complete"


@pytest.mark.parametrize("asked", [{"seeds": [0, 1, 2]}, {"n_samples": [40, 160]}], ids=str)
def test_a_run_is_partial_while_something_asked_for_has_not_started(tmp_path, asked):
    run = finish(write_run(tmp_path, n_samples=(40,), seeds=(0, 1)))
    configure(run.path, **asked)
    assert load_run(run.path).status == "partial"


def test_a_run_with_a_failed_world_is_failed(tmp_path):
    run = finish(write_run(tmp_path))
    (run.path / "seed-1" / "real-n40.failed.json").write_text("{}")
    assert load_run(run.path).status == "failed"


def test_the_table_has_a_row_per_record(tmp_path):
    table = write_run(tmp_path, n_samples=(40, 160), seeds=(0, 1)).to_pandas()
    keys = ["run", "seed", "world", "n_samples", "step"]
    assert list(table.columns[:5]) == keys
    assert len(table) == 2 * 3 * 7
    assert not table.duplicated(subset=keys).any()


def test_the_table_holds_the_numbers_of_the_curves(tmp_path):
    run = write_run(tmp_path)
    table = run.to_pandas().query("world == 'real' and n_samples == 160 and seed == 1")
    assert table["test_error"].tolist() == run.real[160].test_error[1].tolist()


def test_the_table_has_extra_values_under_a_prefix(tmp_path):
    table = write_world(tmp_path, None, [record(0, 0.9, level=0.25)]).to_pandas()
    assert table["extra.level"].tolist() == [0.25]
    assert "extra" not in table


def test_a_writer_keeps_the_pair_that_is_there(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pair.json").write_text('{"preset": "mine"}')
    run = write_world(tmp_path, None, [record(0, 0.9)])
    assert json.loads((run.path / "pair.json").read_text()) == {"preset": "mine"}


@pytest.mark.parametrize("world", [("ideal", 5), ("real", None), ("dream", None)])
def test_a_writer_refuses_a_world_that_is_neither(tmp_path, world):
    with pytest.raises(ValueError, match="world is"):
        RunWriter(tmp_path, "run", 0, *world)
