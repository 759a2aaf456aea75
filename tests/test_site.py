"""`make test-site` must notice every fault of one planted page. The site itself is not built here."""

import pytest

from tests.tools import site

PAGE = """<!doctype html><html lang="en"><title>A page</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="missing.css">
<script>console.error("it says so")</script><script>undefined_name</script>
<a href="#main">Skip</a> <main id="main">
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">
<p style="color: #bbb">Too faint to read.</p>
<p style="width: 3000px">Too wide for any screen.</p>
<p><span onclick="alert()">Only a mouse gets here.</span></p>
<a href="other.html">One</a> <a href="#nowhere">Two</a> <a href="http://example.org/">Three</a>
<a href="https://example.org/" style="outline: none">Four</a>
<iframe title="elsewhere" src="http://example.invalid/"></iframe>
</main></html>"""
TOLD = [
    "got 404 for",
    "console: it says so",
    "script error: undefined_name is not defined",
    "asks for http://example.invalid/",
    "has no alternative text",
    "scrolls sideways by",
    "color-contrast",
    'Tab does not reach <span onclick="alert()">',
    'focus cannot be seen on <a href="https://example.org/"',
    "other.html leads nowhere",
    "#nowhere leads to no place",
    "the link http://example.org/ is not one to the outside",
]


def test_planted_faults_are_found(tmp_path):
    pytest.importorskip("axe_playwright_python", reason="axe is missing: install the extra 'site'")
    if site.CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    (tmp_path / "page.html").write_text(PAGE)
    found, _ = site.findings(tmp_path)
    assert [fault for fault in TOLD if not any(fault in told for told in found)] == []
