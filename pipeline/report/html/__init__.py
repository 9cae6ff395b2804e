"""The report as one HTML file that needs nothing else, no network and no library: Jinja2 templates, and SVG charts."""
