"""The small world: invented people, their portraits, and the benchmark that is drawn of them."""
