"""The browser check finds what a reader would trip over. Needs Chromium and Pillow."""

from pathlib import Path

import check_report
import pytest

pytestmark = pytest.mark.slow

PAGE = """<!doctype html><html><head><meta name="viewport" content="width=device-width">
<style>:root {{ color-scheme: light dark }} body {{ background: {background} }}
@media (prefers-color-scheme: dark) {{ body {{ background: #12161c }} }} </style></head>
<body><svg viewBox="0 0 300 100" style="width: 100%" aria-label="chart">
<rect width="300" height="40" fill="#0b7285"/><rect y="50" width="300" height="40" fill="#4cc9dc"/>
<text x="{x}" y="60">label</text></svg><p style="width: {width}">text</p></body></html>"""


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"width": "2000px"}, "px wider than the window"),
        ({"x": 295}, "leaves its chart"),
        ({"background": "#555"}, "the background of the light page"),
    ],
)
def test_faults_are_found(change, fault, tmp_path: Path):
    pytest.importorskip("PIL")
    browser = check_report.find_browser()
    if browser is None:
        pytest.skip("no browser; Debian's package is called chromium")
    page = tmp_path / "page.html"
    page.write_text(PAGE.format(**({"background": "white", "x": 20, "width": "auto"} | change)))
    faults = check_report.check(page, browser, tmp_path / "pictures")
    if fault is None:
        assert faults == []
    else:
        assert any(fault in found for found in faults), faults
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4
