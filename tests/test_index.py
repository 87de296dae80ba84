"""The README of a results folder: every result, with links that lead there."""

import re
from urllib.parse import unquote

import pytest
from synthetic_runs import configure, finish, write_run

from bootstrap.errors import ConfigurationError
from bootstrap.index import write_index


@pytest.fixture
def root(tmp_path):
    """A run, another whose configuration says nothing, two figures, a study and other files."""
    root = tmp_path / "results"
    recipe = {"model": "mlp(width=8)", "batch_size": 10, "n_steps": 32}
    first = finish(write_run(root / "first"))
    configure(first.path, recipe=recipe, data={"name": "a|b *toy*"})
    second = finish(write_run(root / "deep" / "second one"))
    for run in (first, second):
        (run.path / "curves.png").write_bytes(b"")
    (root / "figures").mkdir()
    for name in ("fig1-laptop", "mine"):
        for ending in ("png", "csv"):
            (root / "figures" / f"{name}.{ending}").write_bytes(b"")
    (root / "explain" / "first").mkdir(parents=True)
    for name in ("map.png", "study.json"):
        (root / "explain" / "first" / name).write_bytes(b"")
    (root / "LOG.md").write_text("")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "curves.png").write_bytes(b"")  # no run
    return root


def test_every_result_has_a_picture_and_a_sentence(root):
    path = write_index(root)
    rows = [line for line in path.read_text().splitlines() if "<img" in line]
    names = [re.search(r"\*\*(.*?)\*\*", row)[1] for row in rows]
    assert names[:3] == ["fig1-laptop", "mine", "explain/first"]
    assert [name.partition("/")[0] for name in names[3:]] == ["deep", "first"]
    assert (
        "Three architectures from scratch in both worlds (after Figure 1 of the paper)." in rows[0]
    )
    assert "Design choices against one baseline" in rows[2]
    assert "mlp(width=8), N = 40 and 160, 32 SGD steps of batch 10." in rows[4]


def test_every_link_is_relative_and_leads_to_something(root):
    text = write_index(root).read_text()
    links = re.findall(r'(?:href|src)="(.*?)"', text) + re.findall(r"\]\((.*?)\)", text)
    assert len(links) == 3 * 5 + 1  # three of each result, and the note
    for link in links:
        assert not link.startswith(("/", "http"))
        assert (root / unquote(link)).exists()


def test_names_of_data_cannot_break_the_table(root):
    (row,) = [line for line in write_index(root).read_text().splitlines() if "toy" in line]
    assert r"Data: a\|b \*toy\*." in row


def test_the_index_of_the_same_results_is_the_same(root):
    first = write_index(root).read_bytes()
    assert write_index(root).read_bytes() == first


def test_a_folder_without_pictures_is_refused(tmp_path, deep_bootstrap):
    with pytest.raises(ConfigurationError, match="no figure of a run there"):
        write_index(tmp_path)
    code, _, err = deep_bootstrap("report", tmp_path, "--readme")
    assert (code, "no figure of a run there" in err) == (2, True)


def test_the_command_prints_where_it_is(root, deep_bootstrap):
    code, out, _ = deep_bootstrap("report", root, "--readme")
    assert (code, out) == (0, f"{root / 'README.md'}\n")
    assert not (root / "report.html").exists()
