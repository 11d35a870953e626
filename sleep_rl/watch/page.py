"""The live page: one HTML file whose script asks for the run's state again and again and shows it.
No external resources.

The script sets whatever comes from a run as text; only `parts` and the figures, which the server
has escaped, are set as HTML. The page's Content-Security-Policy knows its one script by digest, so
that nothing else on it ever runs.
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
