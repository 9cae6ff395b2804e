"""The report as one HTML file that needs nothing else: no network, no library; charts are SVG written here."""
