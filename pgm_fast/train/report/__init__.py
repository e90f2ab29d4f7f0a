"""What people read of a run: report.json and report.html, the card, plots, trackers, comparisons of runs."""
