"""The page of results: whatever a run lacks, it says so and shows the rest."""

import json
import re
from html.parser import HTMLParser

import pytest
from synthetic_runs import configure, finish, write_run, write_world
from test_plot import POOR
from test_plot_command import write_failed, write_torn

from bootstrap.report import write_report
from bootstrap.runlog import load_run
from bootstrap.summary import summarise

VOID = {"meta", "link", "br", "input", "img", "hr"}
HOSTILE = "<script>alert(1)</script>"


class Parsed(HTMLParser):
    """The elements of a page in order, each with its attributes, text and ancestors."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.unclosed = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "in": [e["tag"] for e in self.open], "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        element = self.open.pop()
        if element["tag"] != tag:
            self.unclosed.append(f"<{element['tag']}> ended by </{tag}>")

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        found = [e for e in self.elements if e["tag"] == tag]
        return [e for e in found if all(e.get(k) == v for k, v in attributes.items())]

    def rows(self):
        """The table of runs: the text of each cell by heading."""
        return [e for e in self.all("tr") if e["in"][-2:] == ["table", "tbody"]]


def write_second(root):
    """A finished run of two seeds with names that are hostile to a page."""
    run = finish(write_run(root / "second", seeds=(0, 1), n_every_step=8))
    configure(
        run.path,
        preset=HOSTILE,
        data={"name": f'"><img src="x">{HOSTILE}', "label_source": "a & b"},
        environment={"argv": ["deep-bootstrap", HOSTILE], "packages": {"torch": "2.15.0"}},
    )
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a finished run, one of each poor kind, and files that are no runs at all."""
    root = tmp_path_factory.mktemp("results")
    run = finish(write_run(root / "first", n_every_step=8))
    configure(run.path, recipe={"model": "mlp(width=8)", "batch_size": 10, "n_steps": 32})
    write_second(root)
    for write in (*POOR, write_torn, write_failed):
        (root / write.__name__).mkdir()
        write(root / write.__name__)
    for name, content in (("not_json", "{{{"), ("no_object", "[1]"), ("wrong", '{"seeds": 3}')):
        (root / name).mkdir()
        (root / name / "pair.json").write_text(content)
    return root


@pytest.fixture(scope="module")
def text(root):
    return write_report(root).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Parsed(text)


def article_of(page, name):
    (found,) = [e for e in page.all("article") if e["text"].startswith(name)]
    return found


def row_of(page, *words):
    (found,) = [e for e in page.rows() if all(word in e["text"] for word in words)]
    return found["text"]


def test_every_element_is_closed_and_every_id_is_there_once(page):
    assert (page.unclosed, page.open) == ([], [])
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))


def test_every_link_and_every_reference_of_a_figure_leads_somewhere(page, text):
    ids = {e["id"] for e in page.elements if "id" in e}
    links = {e["href"] for e in page.elements if e.get("href", "").startswith("#")}
    links |= {f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", text)}
    assert links
    assert {link[1:] for link in links} <= ids


def test_the_page_asks_for_nothing_but_itself(page, text):
    assert not re.findall(r"https?://|@import|url\((?!#)", text)
    sources = {e[k] for e in page.elements for k in ("src", "href") if k in e}
    assert all(source.startswith(("#", "data:")) for source in sources)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")


def test_every_run_has_a_row_and_a_chapter_that_the_row_leads_to(page, root):
    names = {path.parent.relative_to(root).as_posix() for path in root.rglob("pair.json")}
    assert len(page.all("article")) == len(names)
    assert {e["text"] for e in page.all("span") if e["in"][-1] == "a"} == names


@pytest.mark.parametrize("name", ["first", "second", "write_failed", "write_one_point"])
def test_a_run_with_records_has_its_figure(page, name):
    (picture,) = [
        e for e in page.all("svg") if e.get("aria-label") and e["id"] == figure(page, name)
    ]
    assert picture["role"] == "img"
    assert picture["text"].lstrip().startswith(picture["aria-label"])  # its <title>
    assert "Test error by SGD step" in picture["aria-label"]


def numbers(root, name):
    return summarise(load_run(root / name / "run"))["n_samples"]


def figure(page, name):
    (link,) = {e["href"] for e in page.all("a") if e["text"].startswith(f"{name}/run")}
    return f"{link[1:]}-curves"


def test_the_alt_text_says_the_final_errors(page, root):
    (picture,) = [e for e in page.all("svg") if e.get("id") == figure(page, "first")]
    across = numbers(root, "first")["40"]
    real, ideal = (across[f"final_{w}"]["error"]["mean"] for w in ("real", "ideal"))
    said = f"At step 32, N = 40: real {real:.1%}, ideal {ideal:.1%}."
    assert said in picture["aria-label"]


def test_every_figure_has_its_caption(page):
    captions = [e for e in page.all("figcaption")]
    assert len(captions) == len(page.all("figure")) > 4
    assert all(e["text"] for e in captions)
    first = article_of(page, "first")["text"]
    assert "Mean of 3 seeds, band: Student-t 95 % interval across seeds." in first


def test_the_table_holds_the_numbers_of_the_summary_with_intervals(page, root):
    across = numbers(root, "first")["160"]["final_gap"]["error"]
    low, high = across["interval_95"]
    text = row_of(page, "first/run", "mlp(width=8)", "160").replace("\xa0", " ")
    assert f"{across['mean']:.1%}".replace("%", " %") in text
    assert f"{low:.1%}".removesuffix("%") + f" to {high:.1%}".replace("%", " %") in text


def test_two_seeds_have_no_interval(page):
    assert " to " not in row_of(page, "second/run", "160")


def test_what_is_sorted_by_is_the_number_itself(page, root):
    across = numbers(root, "first")["160"]["final_gap"]["error"]["mean"]
    assert page.all("td", **{"data-label": "final gap", "data-value": str(across)})


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("write_nothing", "No record yet."),
        ("write_no_ideal", "Not finished"),
        ("write_failed", "seed-1, real-n40 stopped at step 9: NaN."),
        ("not_json", "not JSON"),
        ("no_object", "not a JSON object"),
        ("wrong", "TypeError"),
    ],
)
def test_a_run_that_lacks_something_says_so(page, name, note):
    assert note in article_of(page, name)["text"]


def test_only_what_is_no_run_is_unreadable(page):
    broken = [e for e in page.all("article") if "unreadable" in e["text"]]
    assert {e["text"].split()[0] for e in broken} == {"not_json", "no_object", "wrong"}


def test_text_from_files_is_never_markup(page, text):
    assert HOSTILE not in text
    assert not page.all("img")
    assert len(page.all("script")) == 2
    assert HOSTILE in article_of(page, "second")["text"]


def test_the_two_chosen_runs_have_their_whole_configuration_and_numbers(page):
    (data,) = page.all("script", type="application/json")
    runs = {run["name"]: run for run in json.loads(data["text"])}
    assert len(runs) == len(page.all("option")) / 2
    assert runs["second/run"]["config"]["preset"] == HOSTILE
    assert runs["first/run"]["config"]["recipe.batch_size"] == "10"
    assert runs["second/run"]["environment"]["command"] == f"deep-bootstrap {HOSTILE}"
    assert "N = 160: final gap, test soft-error" in runs["first/run"]["numbers"]


def test_configuration_and_environment_are_folded_away(page):
    folded = [e for e in page.all("details") if "open" not in e]
    assert len(folded) == len(page.all("details")) >= 2
    assert any("packages.torch" in e["text"] for e in folded)


def test_the_page_of_one_run_is_beside_its_records(tmp_path):
    run = write_run(tmp_path)
    assert write_report(run.path) == run.path / "report.html"
    assert len(Parsed((run.path / "report.html").read_text()).all("article")) == 1


def test_equal_runs_give_equal_pages(tmp_path):
    write_run(tmp_path / "a" / "x")
    write_run(tmp_path / "b" / "x")
    pages = [write_report(tmp_path / name).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


def test_the_command_says_where_the_page_is(deep_bootstrap, tmp_path):
    write_world(tmp_path, None, [])
    code, out, _ = deep_bootstrap("report", tmp_path, "--out", tmp_path / "page.html")
    assert (code, out) == (0, f"{tmp_path / 'page.html'}\n")
    text = (tmp_path / "page.html").read_text()
    assert 'class="status unreadable"' not in text


def test_a_folder_without_runs_is_refused_with_the_remedy(deep_bootstrap, tmp_path):
    code, _, err = deep_bootstrap("report", tmp_path)
    assert (code, err) == (
        2,
        f"deep-bootstrap: {tmp_path}: no runs there; `make compare` makes one\n",
    )
