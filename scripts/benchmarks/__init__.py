"""The project's own benchmarks, run by scripts/bench: a module each, and what they share.

    machine     what a figure was measured on; CPU time and memory of processes
    place       grids and mounted file systems of a benchmark, cold caches, contents
    delay       a proxy that puts a distance between a mount and its servers
    virtual     the real client and servers on simulated machines, for exact round trips
    report      results: tables, bounds, JSON
    plot        results as SVG

Each benchmark has `QUESTION`, one line, and `run(bench)`, which returns its `Result`. None of them is a test:
counts are asserted in tests/, times nowhere.
"""
