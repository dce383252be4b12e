"""Speed, side by side: minipalm and its peers on the same shapes, in one run."""
