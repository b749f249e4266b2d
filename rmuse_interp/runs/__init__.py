"""Ask and keep: answers to whole benchmarks, with what is measured of them."""
