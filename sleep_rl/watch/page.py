"""The live page: one HTML file without external resources, whose script polls the run's state.

The script inserts values of the run as text; only `parts` and the figures, which the server has
escaped, are inserted as HTML. The page's Content-Security-Policy allows its one script by digest,
so that no other script runs.
"""

from __future__ import annotations

import base64
import hashlib

from sleep_rl.report.templates import render, static

WATCH = "sleep_rl.watch"
SCRIPT = static("watch.js", WATCH)
SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
STYLE = static("report.css") + static("watch.css", WATCH)
PAGE = str(render("watch.html", WATCH, style=STYLE, script=SCRIPT))
