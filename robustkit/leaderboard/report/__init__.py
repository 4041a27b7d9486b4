"""Records as a page to read and figures to print; needs the extra `report`.

Enters: records and the adversarial inputs beside them.
Leaves: one HTML file, PNG and SVG figures.
Read first: html.py, then view.py.
"""
