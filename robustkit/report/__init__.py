"""Records as a page to read and figures to print. Needs the extra `report`."""
