"""The status of the bridge: its data (``report.py``), and the page and the JSON on the scheduler's HTTP server.

To show one more column: add the value in ``report.py`` and a cell in ``page.html``.
"""
