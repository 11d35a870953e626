"""The live page of a run in a thread of the test, and a client of it."""

from __future__ import annotations

import http.client
import json
import threading

from sleep_rl.watch.server import Server
from tests.fakes.processes import LIMIT_S


class WatchClient:
    """A client of a server in a thread of this process; `alive`: whether the run's lock is held."""

    def __init__(self, folder, host="127.0.0.1"):
        self.alive = True
        self.asked = []
        self.server = Server(folder, host, 0, lambda asked: self.asked.append(asked) or self.alive)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def ask(self, path="/state.json", method="GET", **headers):
        connection = http.client.HTTPConnection(*self.server.server_address[:2], timeout=LIMIT_S)
        connection.request(
            method, path, headers={key.replace("_", "-"): value for key, value in headers.items()}
        )
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, dict(answer.getheaders()), body

    def state(self):
        self.server._held_time = -9.0  # expires the cached result of `held`
        status, _, body = self.ask()
        assert status == 200, body
        return json.loads(body)

    def chart(self, title):
        """Return the chart of this title in the newest state; None without points."""
        charts = {chart.panel.title: chart for chart in self.server.run_state.charts()}
        return charts[title] if charts[title].series else None

    def curve(self, title, label):
        [series] = [s for s in self.chart(title).series if s.label == label]
        return series.points

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
