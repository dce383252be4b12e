"""Is it better, and how sure are we: statistics, the judge, the report."""
