"""The page in a real browser: nothing refused, nothing wider than the window. Skips where there is none."""

import json
import re
import shutil
import subprocess

import bench_result
import pytest

from deploykit.report import bench_html, bench_model

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
NAMES = ("openvino-bf16", "openvino-int8", "torch", "torch-bf16", "plain-onnxruntime", "plain-openvino")

# The page allows no script, so a second one frames it, without its policy, and says how wide it is.
PROBE = """<!doctype html><title>waiting</title><iframe id="f" style="border:0;width:{width}px;height:900px"></iframe>
<script>
const frame = document.getElementById("f");
frame.onload = () => {{
  const page = frame.contentDocument;
  page.querySelectorAll("details").forEach(d => d.open = true);
  const wide = [...page.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > {width} + 1);
  const small = [...page.querySelectorAll(".plot text")].map(e => e.getBoundingClientRect().height);
  document.title = "done " + page.documentElement.scrollWidth + " " + wide.length + " " + Math.min(...small)
    + " " + page.defaultView.getComputedStyle(page.body).backgroundColor.replaceAll(" ", "");
}};
frame.srcdoc = {page};
</script>"""


def browse(page, *options):
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options]
    done = subprocess.run([*command, f"file://{page}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def page():
    made = bench_result.made(subjects=NAMES, points=[*bench_result.POINTS, (1, None, 2)])
    return bench_html.render(bench_model.from_result(made))


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(("scheme", "background"), [(1, "rgb(255,255,255)"), (0, "rgb(20,24,31)")])
def test_nothing_is_wider_than_the_window_and_text_is_readable(tmp_path, page, width, scheme, background):
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    probe = PROBE.format(width=width, page=json.dumps(bare).replace("</", "<\\/"))
    (tmp_path / "probe.html").write_text(probe)
    settings = f"--blink-settings=preferredColorScheme={scheme}"
    size = f"--window-size={width + 20},900"
    dom = browse(tmp_path / "probe.html", "--dump-dom", size, settings, "--virtual-time-budget=5000").stdout
    scroll, wide, text, colour = re.search(r"<title>done (\d+) (\d+) ([\d.]+) (\S+)</title>", dom).groups()
    assert int(scroll) <= width
    assert int(wide) == 0
    assert float(text) >= 11
    assert colour == background


def test_the_console_stays_silent(tmp_path, page):
    (tmp_path / "page.html").write_text(page)
    done = browse(tmp_path / "page.html", "--dump-dom")
    assert "Bench of minilm" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line or "Refused" in line]
