"""The report: one file that a browser draws without complaint, numbers that can be taken out, words that cannot break it."""

import csv
import io
import json
import math
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from winnow import page
from winnow.cli import app
from winnow.errors import WinnowError
from winnow.page import charts, runs

ROOT = Path(__file__).parents[1]
MNIST = [ROOT / "records" / f"mnist-keep-0.02-seed{k}" for k in range(3)]
CIFAR = ROOT / "records" / "cifar10-channels-macs-0.3"
pytest.importorskip("vl_convert")


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk") / "p"
    words = ["path", "digits", "--densities", "1,0.5,0.2,0.1", "--epochs", "2", "--threads", "1", "--out", str(folder)]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "t"
    words = ["train", "digits", "--keep", "0.2", "--epochs", "2", "--threads", "1", "--out", str(folder)]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    folder = tmp_path_factory.mktemp("chromium")
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    for word in ("--headless=new", "--no-sandbox", "--no-first-run", "--window-size=1200,900", f"--user-data-dir={folder}"):
        options.add_argument(word)
    for word in quiet:
        options.add_argument(f"--disable-{word}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.downloads = folder / "downloads"
    yield driver
    driver.quit()


def opened(browser, folders, out):
    page.write([run for folder in folders for run in page.read(folder)], out)
    browser.get_log("browser")
    browser.get(f"file://{out}")
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    browser.execute_script(
        "document.querySelectorAll('figure.chart').forEach(f => { if (!drawn.has(f)) { drawn.set(f, null); draw(f); } })"
    )
    figures = browser.find_elements("css selector", "figure.chart")
    wait(lambda: len(browser.find_elements("css selector", "figure[data-drawn] svg")) == len(figures))
    return figures


def wait(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.1)


def test_every_chart_is_drawn_and_the_console_is_silent(browser, walked, trained, tmp_path):
    figures = opened(browser, [walked, trained, *MNIST, CIFAR], tmp_path / "r.html")
    assert len(figures) > 15
    assert browser.execute_script("return window.failed") == []
    assert browser.get_log("browser") == []
    marks = browser.execute_script(
        "return [...document.querySelectorAll('figure.chart')].map(f => f.querySelectorAll('svg path').length)"
    )
    assert all(count > 3 for count in marks)  # axes alone are fewer
    assert (tmp_path / "r.html").stat().st_size < 3_000_000


def test_nothing_is_fetched(walked, tmp_path):
    """No address that a browser would load by itself: the file is all there is."""
    text = page.write(page.read(walked), tmp_path / "r.html").read_text(encoding="utf-8")
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", outside)
    assert "@import" not in outside and "url(" not in outside


def test_csv_and_svg_come_out(browser, walked, tmp_path):
    figure = opened(browser, [walked], tmp_path / "r.html")[0]
    buttons = {button.text: button for button in figure.find_elements("css selector", "button")}
    for name in ("CSV", "SVG"):
        buttons[name].send_keys("\n")  # by keyboard
    files = [browser.downloads / f"curve-digits.{kind}" for kind in ("csv", "svg")]
    wait(lambda: all(file.exists() and file.stat().st_size for file in files))
    rows = list(csv.DictReader(io.StringIO(files[0].read_text())))
    points = json.loads((walked / "run.json").read_text())["points"]
    assert [float(row["score"]) for row in rows] == pytest.approx([p["score"] for p in points], rel=1e-5)
    assert [float(row["kept %"]) for row in rows] == pytest.approx([100 * p["density"] for p in points], rel=1e-5)
    assert files[1].read_text().startswith("<svg")


def test_it_fits_a_phone_and_a_dark_room(browser, walked, tmp_path):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 375, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        opened(browser, [walked], tmp_path / "r.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 375
        light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
        wait(lambda: browser.execute_script("return getComputedStyle(document.body).backgroundColor") != light)
        labels = "return document.querySelector('figure.chart svg text').getAttribute('fill')"
        wait(lambda: browser.execute_script(labels) == "#e8e8e8")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_everything_can_be_reached_by_keyboard(browser, walked, trained, tmp_path):
    """Tab alone comes to every link, button and heading that is to be seen."""
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    opened(browser, [walked, trained], tmp_path / "r.html")
    browser.execute_script("document.addEventListener('focusin', e => { e.target.dataset.reached = 1; })")
    targets = "[...document.querySelectorAll('a[href], button, summary')].filter(e => e.getClientRects().length)"
    many = browser.execute_script(f"return {targets}.length")
    assert many > 10
    for _ in range(2 * many + 10):
        browser.switch_to.active_element.send_keys(keys.TAB)
    missed = browser.execute_script(f"return {targets}.filter(e => !e.dataset.reached).map(e => e.outerHTML)")
    assert missed == []
    unnamed = "return [...document.querySelectorAll('.plot')].filter(p => !p.getAttribute('aria-label')).length"
    assert browser.execute_script(unnamed) == 0


def test_charts_zoom_and_tell_their_values(browser, walked, tmp_path):
    """The wheel changes the axis; a point under the pointer says its method and its score."""
    chains = pytest.importorskip("selenium.webdriver").ActionChains
    figure = opened(browser, [walked], tmp_path / "r.html")[0]
    point = figure.find_elements("css selector", "svg .mark-symbol.role-mark path")[-1]
    chains(browser).scroll_to_element(figure).move_to_element(point).perform()
    wait(lambda: browser.find_elements("css selector", "#vg-tooltip-element.visible"))
    said = browser.find_element("css selector", "#vg-tooltip-element").text
    scores = [p["score"] for p in json.loads((walked / "run.json").read_text())["points"]]
    assert "path: gating" in said and any(f"{score:.4f}" in said for score in scores)
    axis = (
        "return [...arguments[0].querySelectorAll('svg .role-axis-label text')]"
        ".map(t => t.textContent + t.getAttribute('transform'))"
    )
    before = browser.execute_script(axis, figure)
    wheel = (
        "arguments[0].dispatchEvent(new WheelEvent('wheel', "
        "{deltaY: -300, bubbles: true, cancelable: true, clientX: arguments[1], clientY: arguments[2]}))"
    )
    box = browser.execute_script("const r = arguments[0].getBoundingClientRect(); return [r.x, r.y]", point)
    browser.execute_script(wheel, point, *box)
    wait(lambda: browser.execute_script(axis, figure) != before)


def test_a_comparison_is_read_from_its_study_too(compared, tmp_path):
    """While it runs a folder has no run.json, and a storage never has one."""
    from winnow.compare.command import worker
    from winnow.compare.plan import Plan
    from winnow.compare.study import begin

    under_way = tmp_path / "c"
    shutil.copytree(compared, under_way)
    (under_way / "run.json").unlink()
    strip = lambda runs: [(run.method, run.points) for run in runs]  # noqa: E731
    assert strip(page.read(under_way)) == strip(page.read(compared))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    begin(url, Plan(["digits"], ["one-shot magnitude"], [0.2], seeds=1, scale=0.02))
    with pytest.raises(WinnowError, match="no training of this comparison is done"):
        page.read(url)
    worker(url)
    out = tmp_path / "r.html"
    assert CliRunner().invoke(app, ["report", url, str(compared), "--out", str(out)]).exit_code == 0
    assert "study.db" in out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    pytest.importorskip("optuna")
    folder = tmp_path_factory.mktemp("compare") / "c"
    words = ["compare", "digits", "--methods", "one-shot magnitude; gating, D = 3", "--keep", "0.5,0.2", "--seeds", "2"]
    assert CliRunner().invoke(app, [*words, "--scale", "0.05", "--out", str(folder)]).exit_code == 0
    return folder


def test_a_comparison_is_shown_with_its_league_and_its_failures(browser, compared, tmp_path):
    shutil.copytree(compared, tmp_path / "c")
    record = json.loads((tmp_path / "c" / "run.json").read_text())
    record["rows"][-1] |= {"error": "the loss is nan <b>"}
    (tmp_path / "c" / "run.json").write_text(json.dumps(record))
    runs_read = page.read(tmp_path / "c")
    assert [run.method for run in runs_read] == ["one-shot magnitude", "gating, D = 3"]
    assert [len(run.points) for run in runs_read] == [4, 3]
    assert set(runs_read[0].layers) == {"0.5", "0.2"}
    opened(browser, [tmp_path / "c"], tmp_path / "r.html")
    assert browser.execute_script("return window.failed") == [] == browser.get_log("browser")
    text = browser.find_element("css selector", "main").text
    assert "League table" in text and "the loss is nan <b>" in text and "gating, D = 3: " in text


EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 2'>{{}} & \"quoted\""


def test_words_from_files_cannot_break_out(browser, trained, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(trained, folder)
    record = json.loads((folder / "run.json").read_text())
    record["options"]["data"] = record["command"] = record["error"] = EVIL
    record["warnings"] = [EVIL]
    record["data"]["name"] = EVIL
    record["sparse"]["layers"][0]["name"] = EVIL
    record["sparse"]["certificate"]["words"] = EVIL
    (folder / "run.json").write_text(json.dumps(record))
    opened(browser, [folder], tmp_path / "r.html")
    assert browser.execute_script("return window.evil === undefined")
    assert browser.find_elements("css selector", "img") == []
    assert EVIL in browser.find_element("css selector", "main").text


def copies(folder, out, many):
    folders = []
    for k in range(many):
        folders.append(out / f"run-{k}")
        shutil.copytree(folder, folders[-1])
    return folders


@pytest.mark.parametrize("case", ["a path and a comparison", "runs", "runs with weights"])
def test_many_runs_stay_small_and_quick(case, browser, walked, trained, tmp_path):
    """A path and a comparison of hundreds, or two hundred runs: within 3 MB, and two seconds to the first chart."""
    if case == "a path and a comparison":
        folders = [walked, ROOT / "records" / "compare-isolet"]
        assert len(json.loads((folders[1] / "run.json").read_text())["rows"]) > 200
    else:
        folders = copies(MNIST[0] if case == "runs" else trained, tmp_path, 200)
    out = page.write([run for folder in folders for run in page.read(folder)], tmp_path / "r.html")
    assert out.stat().st_size < 3_000_000
    start = time.monotonic()
    browser.get(f"file://{out}")
    wait(lambda: browser.find_elements("css selector", "figure[data-drawn] svg"))
    assert time.monotonic() - start < 20  # two seconds on a quiet machine; this one may be shared


# ---- reading -----------------------------------------------------------------------------------------------------


def test_runs_of_all_ages_are_read(walked, trained):
    path, train, old = (page.read(folder)[0] for folder in (walked, trained, CIFAR))
    assert [run.kind for run in (path, train, old)] == ["path", "train", "train"]
    assert [len(run.points) for run in (path, train, old)] == [4, 2, 2]
    assert set(train.pictures) == {"fc1.weight", "fc2.weight", "fc3.weight"} == set(path.pictures)
    assert old.pictures == {}  # its weights are not in the record
    assert list(path.layers) == ["0.5", "0.2", "0.1"]
    assert path.history and train.history and all(isinstance(row["step"], float) for row in path.history)
    grid = train.pictures["fc3.weight"]
    assert len(grid) == 10 and len(grid[0]) == 32 and all(0 <= x <= 1 for row in grid for x in row)


def test_a_picture_keeps_the_share(trained):
    from safetensors.torch import load_file

    weight = load_file(trained / "model.safetensors")["fc1.weight"]
    grid = runs.cells(weight)
    share = sum(map(sum, grid)) / sum(map(len, grid))
    assert share == pytest.approx(float((weight != 0).float().mean()), abs=0.02)


BROKEN = {
    "no folder": (None, "no run.json"),
    "not JSON": ("{", "damaged"),
    "a list": ("[]", "damaged"),
    "nothing in it": ("{}", "damaged"),
    "newer": ('{"format": 99}', "format 99, newer than this Winnow"),
    "half": ('{"format": 1, "dense": null}', "damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder(case, tmp_path):
    text, complaint = BROKEN[case]
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(WinnowError, match=complaint):
        page.read(tmp_path)


def test_damaged_weights_are_named(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "t")
    (tmp_path / "t" / "model.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(WinnowError, match=r"model\.safetensors is damaged"):
        page.read(tmp_path / "t")


def test_from_the_command_line(trained, tmp_path):
    done = CliRunner().invoke(app, ["report", str(trained), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0 and (tmp_path / "r.html").stat().st_size > 500_000
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
    bad = CliRunner().invoke(app, ["report", str(tmp_path / "nothing")])
    assert bad.exit_code == 2 and "no run folder" in bad.stderr
    nowhere = CliRunner().invoke(app, ["report", str(trained), "--out", str(tmp_path / "no" / "r.html")])
    assert nowhere.exit_code == 2 and "choose another --out" in nowhere.stderr


# ---- the curves alone --------------------------------------------------------------------------------------------


def test_the_curves_alone(walked, trained, tmp_path):
    """An SVG with every method's name, one line each; a PNG; both from the command line."""
    for name in ("c.svg", "c.png"):
        done = CliRunner().invoke(app, ["report", str(walked), str(trained), "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    tree = ElementTree.parse(tmp_path / "c.svg")
    words = {text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert {"digits", "times smaller", *(run.method for f in (walked, trained) for run in page.read(f))} <= words
    assert (tmp_path / "c.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob("*.part"))


def test_what_cannot_be_drawn(trained, tmp_path):
    runs = page.read(trained)
    with pytest.raises(WinnowError, match="at least one run"):
        page.draw([], tmp_path / "c.svg")
    with pytest.raises(WinnowError, match="ends in"):
        page.draw(runs, tmp_path / "c.pdf")
    with pytest.raises(WinnowError, match="cannot write"):
        page.draw(runs, tmp_path / "no" / "c.svg")
    with pytest.raises(WinnowError, match="draw them apart"):
        page.draw([*runs, replace(runs[0], by_loss=True)], tmp_path / "c.svg")


# ---- what belongs together ---------------------------------------------------------------------------------------


def test_runs_of_other_settings_are_other_lines(trained, tmp_path):
    """Seeds and targets make points of one line; epochs, rates and batches do not."""
    run = page.read(trained)[0]

    def with_(**changes):
        return replace(run, record={**run.record, "options": {**run.record["options"], **changes}})

    names = [r.method for r in runs.told_apart([run, with_(seed=5, keep=0.1), with_(seed=6)])]
    assert set(names) == {run.method}
    names = [r.method for r in runs.told_apart([run, with_(epochs=9), with_(epochs=9, seed=3)])]
    assert names == [f"{run.method}, epochs 2", f"{run.method}, epochs 9", f"{run.method}, epochs 9"]


def test_a_folder_without_a_record_is_named_and_left_out(trained, tmp_path):
    (tmp_path / "broken").mkdir()
    said = []
    found = page.read_all([tmp_path / "broken", trained], said.append)
    assert len(found) == 1 and "broken is no run folder" in said[0]
    with pytest.raises(WinnowError, match="no run folder"):
        page.read_all([tmp_path / "broken"], said.append)


def test_a_path_of_ones_own_loop(walked, tmp_path):
    """It has a path.json and no run.json."""
    folder = tmp_path / "own"
    shutil.copytree(walked, folder)
    (folder / "run.json").unlink()
    with pytest.raises(WinnowError, match=r"unfinished path: winnow path digits.*goes on with it"):
        page.read(folder)  # by its tag a path of the command's, interrupted before its record was written
    record = json.loads((folder / "path.json").read_text())
    (folder / "path.json").write_text(json.dumps(record | {"tag": ""}))
    (run,) = page.read(folder)
    (told,) = page.read(walked)
    assert run.kind == "path" and run.points == told.points and run.measure == "score"
    assert page.write([run], tmp_path / "r.html").stat().st_size > 1000


def changed(folder, out, **words):
    """A run folder's copy with other words in its record."""
    shutil.copytree(folder, out)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, **words}))
    return out


def test_what_is_not_finished_is_told_as_such(trained, tmp_path):
    (run,) = page.read(changed(trained, tmp_path / "a", status="interrupted"))
    assert run.method.endswith("(interrupted)")
    empty = changed(trained, tmp_path / "b", status="failed", error="the loss is nan", dense=None, sparse=None)
    with pytest.raises(WinnowError, match=r"no finished training \(the loss is nan\)"):
        page.read(empty)
    said = []
    assert len(page.read_all([trained, empty], said.append)) == 1 and "the loss is nan" in said[0]
    with pytest.raises(WinnowError, match="no finished training"):
        page.read_all([empty], said.append)


def test_a_comparison_of_failures_is_told_as_such(tmp_path):
    row = {"phase": "final", "task": "digits", "method": "dense", "keep": 1.0, "seed": 0, "error": "no luck"}
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "kind": "compare", "plan": {"scale": 1.0}, "rows": [row]}))
    with pytest.raises(WinnowError, match=r"no training of this comparison is done \(no luck\)"):
        page.read_all([tmp_path], lambda line: None)


def test_numbers_without_end_in_a_history_draw_nothing(trained, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(trained, folder)
    lines = (folder / "history.csv").read_text().splitlines()
    (folder / "history.csv").write_text("\n".join([*lines, lines[-1].replace(lines[-1].split(",")[2], "inf")]) + "\n")
    (run,) = page.read(folder)
    assert not any(isinstance(x, float) and not math.isfinite(x) for row in run.history for x in row.values())
    assert page.write([run], tmp_path / "r.html").exists()


def test_runs_share_a_line_where_their_settings_are_the_same(trained, tmp_path):
    """Seeds meet at what was asked; shares of other things are lines of their own; an old record has no weight decay."""
    record = json.loads((trained / "run.json").read_text())
    options = {key: value for key, value in record["options"].items() if key != "weight_decay"}
    old = changed(trained, tmp_path / "old", options=options)
    of_macs = {**record["options"], "keep": None, "keep_macs": record["options"]["keep"]}
    macs = changed(trained, tmp_path / "macs", options=of_macs)
    decayed = changed(trained, tmp_path / "wd", options={**record["options"], "weight_decay": 1e-4})
    runs = page.read_all([trained, old, macs, decayed], lambda line: None)
    assert runs[0].method == runs[1].method and len({run.method for run in runs}) == 3
    assert "share of MACs" in runs[2].method and "weight_decay 0.0001" in runs[3].method
    assert runs[0].points[-1].kept == record["options"]["keep"] and "density" in runs[0].points[-1].more


def test_what_collapses_among_many_is_out_of_view_and_counted(trained):
    run = page.read(trained)[0]
    point = run.points[0]
    many = [replace(run, method=f"m{k}", points=[replace(point, score=90.0 + k)]) for k in range(8)]
    low = replace(run, method="low", points=[replace(point, score=10.0)])
    assert charts.out_of_view(many[:2]) == charts.out_of_view([*many[:2], low]) == 0
    assert charts.out_of_view([*many, low]) > 0
    low_y, high_y = charts._shown([*many, low])
    assert 10 < low_y < 94 and high_y > 96
    worse = [replace(r, by_loss=True, points=[replace(r.points[0], score=r.points[0].score / 100)]) for r in many]
    assert charts._shown(worse)[0] < 0.9


def test_a_long_legend_does_not_eat_the_plot(trained):
    """The height grows with the lines of the legend, which stands below."""
    run = page.read(trained)[0]
    heights = [charts.tradeoff([replace(run, method=f"m{k}") for k in range(n)])["height"] for n in (1, 2, 14)]
    assert [h - heights[0] for h in heights] == [0, 0, 6 * charts.LINE]
    long = charts.tradeoff([replace(run, method=f"{k}" * 30) for k in range(3)])
    assert long["height"] == charts.HEIGHT + 3 * charts.LINE


def test_only_some_methods(walked, trained):
    found = page.read_all([walked, trained], print)
    names = [run.method for run in found]
    assert [run.method for run in page.only(found, [f" {names[1]} "])] == [names[1]]
    with pytest.raises(WinnowError, match="no run has the method 'prayer': choose from"):
        page.only(found, ["prayer"])
